"""What a trace of JAX's profiler says: which operations took the time, and when none ran."""

import collections
import pathlib
from collections.abc import Sequence
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
    ran, span_s: from the first's start to the last's end; longest_gap_s: without any. aside_s: what
    was left out between the first and the last, in none of the others."""

    operations: list[Operation]
    busy_s: float
    span_s: float
    longest_gap_s: float
    aside_s: float


def read_profile(folder: pathlib.Path, aside: str | None = None) -> Profile | None:
    """The newest trace under `folder`; None where it holds no operation of a device.

    aside: the name of the `jax.profiler.TraceAnnotation`s around what is to be left out.
    """
    from jax.profiler import ProfileData

    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        return None
    events, left_out = [], []  # as for `summarize`
    for plane in ProfileData.from_file(str(files[-1])).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name == aside:
                    left_out.append((event.start_ns, event.start_ns + event.duration_ns))
                    continue
                stats = dict(event.stats)
                name = stats.get("hlo_op") or (line.name == "XLA Ops" and event.name)
                if not name or event.name.startswith("end: "):
                    continue
                if str(name).split(".")[0] in _CONTROL:
                    continue
                end = event.start_ns + event.duration_ns
                events.append((event.start_ns, end, str(name), str(stats.get("hlo_module", ""))))
    return summarize(events, left_out)


def summarize(
    events: list[tuple[float, float, str, str]], left_out: Sequence[tuple[float, float]] = ()
) -> Profile | None:
    """events: (start, end, operation, program), in nanoseconds.

    left_out: (start, end) that do not overlap; what began in one does not count, and the clock of
    the others stood still in it.
    """

    def clock(time):
        return time - sum(min(max(time - start, 0), end - start) for start, end in left_out)

    events = [e for e in events if not any(start <= e[0] < end for start, end in left_out)]
    if not events:
        return None
    whole = max(end for _, end, *_ in events) - min(start for start, *_ in events)
    events = [(clock(start), clock(end), name, program) for start, end, name, program in events]
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
    span = covered - first
    return Profile(operations, busy / 1e9, span / 1e9, gap / 1e9, (whole - span) / 1e9)
