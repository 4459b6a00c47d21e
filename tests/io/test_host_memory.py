"""What is left of a machine's memory, from the files of kernels written out here."""

import os

import pytest

from jaxlm.io.host_memory import free_bytes

KIB = 1024
MEMINFO = "MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:  3000 kB\nSwapFree:  {swap} kB\n"
V2, V1 = "0::/a/b\n", "5:cpu:/a/b\n4:memory:/a/b\n0::/\n"


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v2(folder, limit, used, files=0):
    folder = f"sys/fs/cgroup{folder}"
    stat = f"anon 7\ninactive_file {files}\n"
    return {
        f"{folder}/memory.max": limit, f"{folder}/memory.current": used,
        f"{folder}/memory.stat": stat,
    }  # fmt: skip


def v1(folder, limit, used, files=0):
    folder = f"sys/fs/cgroup/memory{folder}"
    stat = f"inactive_file 1\ntotal_inactive_file {files}\n"
    return {
        f"{folder}/memory.limit_in_bytes": limit, f"{folder}/memory.usage_in_bytes": used,
        f"{folder}/memory.stat": stat,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("", {}, 3000 * KIB),
        (V2, v2("/a/b", "max\n", "5\n"), 3000 * KIB),
        (V2, v2("/a/b", "1000\n", "400\n", files=50), 650),
        (V2, v2("/a/b", "1000\n", "400\n") | v2("/a", "700\n", "500\n"), 200),
        (V2, v2("/a/b", "1000\n", "400\n") | v2("", "90\n", "80\n"), 10),  # as containers see it
        (V2, v2("/a/b", "100\n", "400\n"), 0),
        (V1, v1("/a/b", "1000\n", "400\n", files=50), 650),
        (V1, v1("/a", "9223372036854771712\n", "400\n"), 3000 * KIB),  # no limit
    ],
)
def test_the_smallest_of_what_each_leaves(tmp_path, groups, files, left):
    write(tmp_path, {"proc/meminfo": MEMINFO.format(swap=0), "proc/self/cgroup": groups} | files)
    assert free_bytes(tmp_path) == left
    write(tmp_path, {"proc/meminfo": MEMINFO.format(swap=8)})
    assert free_bytes(tmp_path) == left + 8 * KIB


def test_this_machine_has_some():
    free = free_bytes()
    assert free is None or 2**20 < free < 2**50


def test_where_proc_is_not_mounted_the_system_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 300, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_bytes(tmp_path) == 300 * 4096

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert free_bytes(tmp_path) is None
