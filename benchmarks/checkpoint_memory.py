"""What a checkpoint leaves in the memory of its process, and where that comes from.

    python -m benchmarks.checkpoint_memory
    MALLOC_ARENA_MAX=1 python -m benchmarks.checkpoint_memory  # without glibc's many arenas

A state of tiny arrays is saved again and again; after a garbage collection and `malloc_trim` the
anonymous memory of the process is read. Below it: the Python objects that stay behind after a call
of two functions of TensorStore that Orbax calls, the first for every array of a save, the second
twice for each save. Linux with glibc only.
"""

import argparse
import ctypes
import gc
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import tensorstore

from jaxlm.io.checkpoints import Checkpointer
from jaxlm.reports.tables import print_table

CALLS = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=400)
    parser.add_argument("--leaves", type=int, default=50)
    args = parser.parse_args()
    state = {f"w{i}": jnp.full((16, 16), i, jnp.float32) for i in range(args.leaves)}
    shown, before = max(1, args.saves // 8), None
    rows = [["saves", "MiB", "KiB for each since"]]
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder, keep_best=0) as checkpointer:
        for number in range(1, args.saves + 1):
            checkpointer.save(number, state)
            checkpointer.wait()
            if number % shown == 0:
                now = anonymous_bytes()
                each = "" if before is None else f"{(now - before) / shown / 2**10:.0f}"
                rows.append([str(number), f"{now / 2**20:.1f}", each])
                before = now
    print_table(rows)

    spec = tensorstore.KvStore.Spec({"driver": "file", "path": "/tmp/"})
    print(f"objects left by a call of KvStore.Spec.to_json: {objects_left(spec.to_json):.1f}")
    metrics = tensorstore.experimental_collect_matching_metrics
    left = objects_left(lambda: metrics("/tensorstore/kvstore/"))
    print(f"objects left by a call of experimental_collect_matching_metrics: {left:.1f}")


def anonymous_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def objects_left(call: Callable[[], Any]) -> float:
    """By one call, of those that Python's allocator holds."""
    call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(CALLS):
        call()
    gc.collect()
    return (sys.getallocatedblocks() - before) / CALLS


if __name__ == "__main__":
    main()
