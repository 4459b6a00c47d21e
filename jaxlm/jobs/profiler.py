"""A trace of some steps of a run (train.profile_steps), and what it says in a few lines."""

import pathlib
import re
from collections.abc import Callable

import jax

from jaxlm.io.profiles import Operation, Profile, read_profile
from jaxlm.train.config import TrainConfig, profiled_steps

PROFILE_FOLDER = "profile"
SHOWN = 6  # kinds of operations, and single ones


class Profiler:
    """A context manager, and a hook of the loop to come after all others."""

    def __init__(
        self, cfg: TrainConfig, folder: pathlib.Path, start: int, note: Callable[[str], None]
    ):
        self._steps = profiled_steps(cfg)
        self._folder, self._note = folder / PROFILE_FOLDER, note
        self._running = False
        self._start = start

    def __enter__(self) -> "Profiler":
        self.after_call(self._start)
        return self

    def __exit__(self, *exc) -> None:
        if self._running:  # the run ends before the last step to be traced
            self._stop()

    def after_call(self, step: int, *_) -> None:
        """Starts the trace once the first of the steps is next, and ends it after the last."""
        if self._steps is None:
            return
        first, last = self._steps
        if self._running and step >= last:
            self._stop()
            profile = read_profile(self._folder)
            for line in describe(profile, last - self._started):
                self._note(line)
            self._note(f"profile   {self._folder}, for xprof; *.trace.json.gz for ui.perfetto.dev")
        elif not self._running and first <= step < last:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the device's operations are asked for
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running, self._started = True, step

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False


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
    total = _seconds(profile.operations)
    kinds: dict[str, list[Operation]] = {}
    for op in profile.operations:
        kinds.setdefault(re.sub(r"[.\d]+$", "", op.name), []).append(op)
    sums = [(f"all {kind}", _seconds(ops), _count(ops)) for kind, ops in kinds.items()]
    sums.sort(key=lambda row: -row[1])
    single = [(f"{op.name} of {op.program}", op.seconds, op.count) for op in profile.operations]
    for name, seconds, count in sums[:SHOWN] + single[:SHOWN]:
        each = f"{1e3 * seconds / num_steps:8.3f} ms a step  {seconds / total:6.1%}"
        lines.append(f"{each}  {count / num_steps:6.1f} times  {name}")
    return lines


def _seconds(operations: list[Operation]) -> float:
    return sum(op.seconds for op in operations)


def _count(operations: list[Operation]) -> int:
    return sum(op.count for op in operations)
