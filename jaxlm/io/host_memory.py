"""How much memory this process could still get from the machine."""

import os
import pathlib

# Of a control group, of version 2 and of version 1: its limit, what it uses, and in memory.stat
# what of that is a copy of files and would be given up.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes(root: pathlib.Path = pathlib.Path("/")) -> int | None:
    """What the kernel and the control groups of this process leave it, free swap included.

    None where the system does not say. root: where proc and sys are mounted.
    """
    known = _numbers(root / "proc/meminfo")
    if "MemAvailable" not in known:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None
    left = [1024 * known["MemAvailable"], *_left_to_groups(root)]
    return min(left) + 1024 * known.get("SwapFree", 0)


def _left_to_groups(root: pathlib.Path) -> list[int]:
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):
            for names in _GROUPS:
                limit, used = (_text(group / name).strip() for name in names[:2])
                if limit.isdecimal() and used.isdecimal():
                    files = _numbers(group / "memory.stat").get(names[2], 0)
                    left.append(max(0, int(limit) - int(used) + files))
            if group == top:
                break
    return left


def _numbers(path: pathlib.Path) -> dict[str, int]:
    """{"MemFree": 15} of lines such as "MemFree: 15 kB", or "inactive_file 15"."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
