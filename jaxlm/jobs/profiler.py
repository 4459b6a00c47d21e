"""A trace of some steps of a run (train.profile_steps), and what it says in a few lines."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from jaxlm.io.profiles import Operation, Profile, read_profile
from jaxlm.train.config import TrainConfig, profiled_steps

PROFILE_FOLDER = "profile"
ASIDE = "between steps"  # its name in the trace
SHOWN = 6  # kinds of operations, and single ones


class Profiler:
    """A context manager; what happens between the steps is to be called through `around`."""

    def __init__(self, cfg: TrainConfig, folder: pathlib.Path, note: Callable[[str], None]):
        self._first, self._last = profiled_steps(cfg) or (0, 0)  # none of the steps
        self._folder, self._note = folder / PROFILE_FOLDER, note
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc) -> None:
        if self._running:  # the run ends before the last step to be traced
            self._stop()

    def around(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook (updates done, ...), its own time left out of the steps'.

        The trace ends before the hook that follows the last of the steps, and starts after the one
        that comes before the first.
        """

        def call(step: int, *args: Any) -> Any:
            if self._running and step >= self._last:
                self._stop()
                self._report()
            with jax.profiler.TraceAnnotation(ASIDE):
                result = hook(step, *args)
            if not self._running and self._first <= step < self._last:
                self._begin(step)
            return result

        return call

    def _begin(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # the device's operations are asked for
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._running, self._started = True, step

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False

    def _report(self) -> None:
        profile = read_profile(self._folder, ASIDE)
        for line in describe(profile, self._last - self._started):
            self._note(line)
        self._note(f"profile   {self._folder}, for xprof; *.trace.json.gz for ui.perfetto.dev")


def describe(profile: Profile | None, num_steps: int) -> list[str]:
    """The time of a step by operation, and the part of it in which the device did nothing."""
    if profile is None:
        return ["profile   the trace holds no operation of this device"]
    idle = profile.span_s - profile.busy_s
    lines = [
        f"profile   {num_steps} steps of {1e3 * profile.span_s / num_steps:.2f} ms; no operation "
        f"ran for {1e3 * idle / num_steps:.2f} ms of them ({idle / profile.span_s:.1%}), at most "
        f"{1e3 * profile.longest_gap_s:.2f} ms at a time"
    ]
    if profile.aside_s:
        lines.append(
            f"          left out: {1e3 * profile.aside_s:.2f} ms between them, of logs, saves, "
            "validation and samples"
        )
    total = _seconds(profile.operations)
    kinds: dict[str, list[Operation]] = {}
    for op in profile.operations:
        kinds.setdefault(re.sub(r"[.\d]+$", "", op.name), []).append(op)
    sums = [(kind, _seconds(ops), _count(ops)) for kind, ops in kinds.items()]
    sums.sort(key=lambda row: -row[1])
    single = [(f"{op.name} of {op.program}", op.seconds, op.count) for op in profile.operations]
    for heading, rows in (("kinds of operations", sums), ("single operations", single)):
        shown = f"the {SHOWN} longest of {len(rows)} " if len(rows) > SHOWN else ""
        lines.append(f"          {shown}{heading}")
        for name, seconds, count in rows[:SHOWN]:
            each = f"{1e3 * seconds / num_steps:8.3f} ms a step  {seconds / total:6.1%}"
            lines.append(f"{each}  {count / num_steps:6.1f} times  {name}")
    return lines


def _seconds(operations: list[Operation]) -> float:
    return sum(op.seconds for op in operations)


def _count(operations: list[Operation]) -> int:
    return sum(op.count for op in operations)
