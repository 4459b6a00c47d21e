"""Sides of a comparison in processes of their own, asked in turn: what slows one slows the other.

A worker prints one line of JSON when it is ready, then for each line that it reads runs one block
of work and prints the seconds that it took.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Worker(NamedTuple):
    process: subprocess.Popen
    ready: dict[str, Any]

    def block(self) -> float:
        """Seconds of one block of work."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(_line(self.process))


@contextlib.contextmanager
def open_worker(module: str, arguments: Sequence[str], **env: str) -> Iterator[Worker]:
    """`python -m module arguments` as a worker; `env` is all of its environment, if given."""
    command = [sys.executable, "-m", module, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=env or None, **pipes)
    try:
        yield Worker(process, json.loads(_line(process)))
    finally:
        process.stdin.close()
        process.wait()


def _line(process: subprocess.Popen) -> str:
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{' '.join(process.args)}: ended with {process.wait()}, see above")
    return line


def serve(ready: dict[str, Any], block: Callable[[], None]) -> None:
    """The worker's part: announces itself, then works for as long as it is asked to."""
    print(json.dumps(ready), flush=True)
    timed = seconds_of(block)
    for _ in sys.stdin:
        print(timed(), flush=True)


def seconds_of(block: Callable[[], None]) -> Callable[[], float]:
    """`block` as `alternate` asks for it, for sides that share a process."""

    def timed():
        started = time.perf_counter()
        block()
        return time.perf_counter() - started

    return timed


def alternate(blocks: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each block returns, its seconds, over `rounds` in which all take turns."""
    for block in blocks.values():
        block()  # what is loaded, compiled or first read from the disk
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(rounds):
        for name, block in blocks.items():
            times[name].append(block())
    return {name: statistics.median(seconds) for name, seconds in times.items()}
