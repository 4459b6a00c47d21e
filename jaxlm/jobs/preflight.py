"""Whether there is room for a run's step, said before the first one; and what to say when memory
runs out all the same.

A run is refused where its state alone, which is known exactly, is more than there is, or where the
compiled step is. The step is compiled for that ahead of its time where our own count comes near to
what there is, and then taken from the compile cache: a small run pays nothing. What there is: on an
accelerator what its runtime may still take; on a CPU what the kernel and the control groups leave,
free swap included. A CPU's kernel promises more, and ends the process that then uses it.
"""

import contextlib
import pathlib
import sys
from typing import Any

import jax

from jaxlm.analysis.hlo import compiled_bytes
from jaxlm.jobs import plan, processes
from jaxlm.jobs.compile import DoesNotFitError, compile_step, out_of_memory
from jaxlm.jobs.memory_table import (
    show_compiled,
    show_held,
    show_nearest,
    show_state,
)
from jaxlm.models.backends import Choice
from jaxlm.train import estimates
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout
from jaxlm.train.program import PlacedProgram

NEAR = 0.7  # of what there is: our count was short by a tenth at most, see configs/SCALE.md


def has_room(
    cfg: RunConfig,
    layout: Layout,
    program: PlacedProgram,
    attention: Choice | None,
    limit: int | None,
) -> bool:
    """Whether the step fits; where it does not, says why, what it holds and what would fit.

    limit: bytes of a device; None where that is not known. All processes get the same answer.
    """
    state = program.state
    exact = estimates.state_bytes(state)
    problem, sizes, near = None, None, False
    if limit is not None and exact > limit:
        problem = f"its weights and their optimizer alone take {gib(exact)} GiB a device"
    elif limit is not None and estimates.at_most(cfg, layout, state) > NEAR * limit:
        near = plan.held_by(cfg, layout, state, attention).total > NEAR * limit
    if processes.largest(int(near)) and problem is None:
        print(
            "memory    may not suffice: the step is compiled before anything is written", flush=True
        )
        try:
            sizes = compile_step(cfg, program).memory_analysis()
            if limit is not None and compiled_bytes(sizes) > limit:
                problem = f"a step takes {gib(compiled_bytes(sizes))} GiB a device"
        except DoesNotFitError as error:
            problem = f"a step {error}"
    if not processes.largest(int(problem is not None)):
        return True
    problem = problem or "another process has not the memory"
    room = "" if limit is None else f", {gib(limit)} are free"
    print(f"launch.py: this run does not fit: {problem}{room}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        show_table(cfg, layout, program, attention, limit, sizes)
    return False


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f}"


def ran_out(error: Exception) -> bool:
    """Whether this is an allocator's or a compiler's word for too little memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def explain(
    error: Exception,
    folder: pathlib.Path,
    cfg: RunConfig,
    layout: Layout,
    program: PlacedProgram,
    attention: Choice | None,
    limit: int | None,
) -> None:
    """Says in a line, a table and flags what an error is about that `ran_out` knows.

    folder: of the run, which can go on with those flags.
    """
    says, _ = out_of_memory(str(error))
    print(f"launch.py: out of memory: {says[:200]}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        if flags := show_table(cfg, layout, program, attention, limit):
            print(f"go on with: python launch.py --workdir={folder} {' '.join(flags)}")


def show_table(
    cfg: RunConfig,
    layout: Layout,
    program: PlacedProgram,
    attention: Choice | None,
    limit: int | None,
    sizes: Any = None,
) -> list[str]:
    """Prints what a step holds, by our count, and the flags of the nearest config that holds less.

    sizes: by the compiler, where it was asked.
    """
    held = plan.held_by(cfg, layout, program.state, attention)
    show_state(program.state)
    print()
    show_held(held, limit)
    if sizes is not None:
        show_compiled(sizes, limit)
    return show_nearest(cfg, jax.devices(), limit, attention, held.total)
