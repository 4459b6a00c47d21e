"""What a trace of JAX's profiler says: which operations took the time, and when none ran."""

import collections
import pathlib
from typing import NamedTuple

# Their time is that of the operations inside them.
_CONTROL = ("while", "call", "conditional")


class Operation(NamedTuple):
    """One HLO operation: its name, the program it belongs to, seconds in all and executions."""

    name: str
    program: str
    seconds: float
    count: int


class Profile(NamedTuple):
    """operations: the longest first; several may run at once. busy_s: time in which at least one
    ran, span_s: from the first's start to the last's end; longest_gap_s: without any."""

    operations: list[Operation]
    busy_s: float
    span_s: float
    longest_gap_s: float


def read_profile(folder: pathlib.Path) -> Profile | None:
    """The newest trace under `folder`; None where it holds no operation of a device."""
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        return None
    events = []  # (start, end, operation, program), in nanoseconds
    for plane in ProfileData.from_file(str(files[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op") or (line.name == "XLA Ops" and event.name)
                if not name or event.name.startswith("end: "):
                    continue
                if str(name).split(".")[0] in _CONTROL:
                    continue
                end = event.start_ns + event.duration_ns
                events.append((event.start_ns, end, str(name), str(stats.get("hlo_module", ""))))
    return summarize(events)


def summarize(events: list[tuple[float, float, str, str]]) -> Profile | None:
    """events: (start, end, operation, program), in nanoseconds."""
    if not events:
        return None
    seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    busy, gap, covered = 0.0, 0.0, min(start for start, *_ in events)
    first = covered
    for start, end, name, program in sorted(events):
        seconds[name, program] += (end - start) / 1e9
        counts[name, program] += 1
        gap = max(gap, start - covered)
        busy += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    operations = [Operation(*key, seconds=time, count=counts[key]) for key, time in longest]
    return Profile(operations, busy / 1e9, (covered - first) / 1e9, gap / 1e9)
