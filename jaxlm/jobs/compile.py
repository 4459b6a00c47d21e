"""--job=compile: the real training step compiled for hardware that need not be there.

Says whether it fits, what lies where, what is sent, and the least time a step can take. For TPUs
that are not there (--topology=v5e:4x4) the compiler is that of the libtpu package, which runs on
any machine; --topology=local compiles for what is here. With --plan, the micro-batch, remat and
mesh with which the step is fastest among those that fit.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis import flops
from jaxlm.analysis.hlo import Collective, collectives, compiled_bytes
from jaxlm.core import params as params_lib
from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data.batches import Batch
from jaxlm.jobs import Launch, plan
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.devices import free_bytes
from jaxlm.jobs.memory_table import (
    show_compiled,
    show_held,
    show_nearest,
    show_state,
)
from jaxlm.jobs.setup import backends_of, layout_of
from jaxlm.models import kinds
from jaxlm.models.backends import Choice
from jaxlm.reports.tables import print_table
from jaxlm.train.config import RunConfig
from jaxlm.train.estimates import flops_per_token, platform_of
from jaxlm.train.layouts import Layout
from jaxlm.train.program import PlacedProgram, hyper_values, place_program
from jaxlm.train.state import TrainState

# The name of a slice with so many chips, as a TPU machine has it in its environment: versions 4
# and 5p count cores, two a chip.
SLICES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
SOME_VOCABULARY = 256
MOST_COMPILED = 3  # candidates of a plan


class DoesNotFitError(Exception):
    """The compiler found no place for what the program holds at once; the message is its count.

    needed: bytes of a device, where the count says so.
    """

    def __init__(self, message: str, needed: int | None):
        super().__init__(message)
        self.needed = needed


def main(launch: Launch) -> int:
    devices = topology_devices(launch.flags.topology)
    cfg, name = launch_config(launch)
    known = cfg.model.vocab_size or cfg.tokenizer.vocab_size
    cfg = with_some_vocabulary(cfg)
    if cfg.train.parallel == "pmap":
        raise ConfigError(f"{FLAG}train.parallel=pmap: only jit is compiled ahead")
    specs = kinds.param_specs(cfg.model)
    layout = layout_of(cfg, specs, devices)
    limit = free_bytes(layout.mesh.devices.flat)
    backends = backends_of(cfg, layout, platform_of(layout))
    attention = backends.attention
    print(f"config    {name}: {params_lib.count_params(specs):,} parameters")
    if known is None:
        print(
            f"          as if with {SOME_VOCABULARY} ids, since no text is read; "
            f"set {FLAG}model.vocab_size"
        )
    kind = devices[0].device_kind
    print(f"devices   {layout.mesh.size} of {len(devices)} {kind}: {layout.description}")
    print(f"attention {backends}", flush=True)
    if launch.flags.plan:
        return show_plan(cfg, devices, limit, attention)
    program = program_of(cfg, layout, attention)
    print()
    show_state(program.state)
    print()
    held = plan.held_by(cfg, layout, program.state, attention)
    show_held(held, limit)
    started = time.perf_counter()
    try:
        compiled = compile_step(cfg, program)
    except DoesNotFitError as error:
        print(f"does not fit: {error}")
        show_nearest(cfg, devices, limit, attention, held.total)
        return 1
    print(f"compiled in {time.perf_counter() - started:.0f} s")
    fits = show_compiled(compiled.memory_analysis(), limit)
    print()
    sent = collectives_of(compiled, cfg.train.steps_per_call)
    show_bound(cfg, layout, program.state, sent, attention)
    if not fits:
        show_nearest(cfg, devices, limit, attention, held.total)
    return 0 if fits else 1


def program_of(cfg: RunConfig, layout: Layout, attention: Choice | None) -> PlacedProgram:
    """The training program for the devices of a layout; no text is read."""
    backends = backends_of(cfg, layout, platform_of(layout), attention)
    token_bytes = np.ones(cfg.model.vocab_size or 0, np.int32)
    return place_program(cfg, token_bytes, layout, hyper_values(cfg), **backends.options)


def show_plan(
    cfg: RunConfig, devices: Sequence[Any], limit: int | None, attention: Choice | None
) -> int:
    """Compiles the candidates that our count has first, until one fits; 1 if none does.

    limit: bytes of a device; None where that is not known.
    """
    found = plan.candidates(cfg, devices, attention)
    own = next(each for each in found if each.cfg == cfg)
    fit = sum(limit is None or each.held.total <= limit for each in found)
    print(f"plan      {len(found):,} ways to run a step, of which {fit:,} fit by our count")
    print(f"\nas it is: {own.description}")
    show_held(own.held, limit)
    most = limit
    for _ in range(MOST_COMPILED):
        best = plan.fastest(found, most)
        if best is None:
            break
        found.remove(best)
        print(f"\ncandidate: {best.description}")
        show_held(best.held, limit)
        needed = compile_candidate(best, limit, attention)
        if limit is None or needed <= limit:
            flags = plan.changes(cfg, best.cfg)
            print(f"\n{'to change ' + ' '.join(flags) if flags else 'nothing to change'}")
            return 0
        # Our count is too small by as much; the next must fit with that to spare.
        most = min(most or limit, limit * best.held.total / max(needed, 1.02 * best.held.total))
    print(f"\nno plan found: {plan.NOTHING_FITS}")
    return 1


def compile_candidate(best: plan.Candidate, limit: int | None, attention: Choice | None) -> float:
    """Prints what the compiler says; bytes of a device, infinite where it says no number."""
    program, started = program_of(best.cfg, best.layout, attention), time.perf_counter()
    try:
        compiled = compile_step(best.cfg, program)
    except DoesNotFitError as error:
        print(f"does not fit: {error}")
        return error.needed or math.inf
    print(f"compiled in {time.perf_counter() - started:.0f} s")
    show_compiled(compiled.memory_analysis(), limit)
    sent = collectives_of(compiled, best.cfg.train.steps_per_call)
    show_bound(best.cfg, best.layout, program.state, sent, attention)
    return compiled_bytes(compiled.memory_analysis())


def collectives_of(compiled: Any, num_steps: int) -> dict[str, Collective] | None:
    """Of one of the program's steps; None where the compiler cannot write the program down."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # libtpu fails at some operations of very many devices
        return None
    found = collectives(text).items()
    return {kind: Collective(n // num_steps, size // num_steps) for kind, (n, size) in found}


def topology_devices(name: str) -> list[Any]:
    """The devices of "local", or of a topology such as "v5e:4x4" that need not be there.

    Raises:
      ConfigError: no such topology, or no libtpu to ask.
    """
    if name == "local":
        return jax.devices()
    flag = f"--topology={name}"
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not found or found[1] not in SLICES:
        known = ", ".join(SLICES)
        raise ConfigError(f"{flag}: expected local, or one of {known} with a grid, such as v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"{flag} needs the libtpu package: pip install -e '.[tpu-aot]'")
    prefix, per_chip = SLICES[found[1]]
    cores = per_chip * math.prod(map(int, found[2].split("x")))
    # What libtpu else asks the machine for, at length, where it is no part of a TPU.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{prefix}-{cores}"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # else one process of the machine at a time
    os.environ.pop("XLA_FLAGS", None)  # for this machine's compiler; at one it lacks libtpu aborts
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    # The two cores of a chip are one device, as on the machine; with v5p they are so by default.
    options = {"chip_config_name": "megacore"} if found[1] == "v4" else {}
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:  # whatever libtpu says of it
        raise ConfigError(f"{flag}: {' '.join(str(error).split())}") from None


def with_some_vocabulary(cfg: RunConfig) -> RunConfig:
    """`cfg` with a vocabulary size even where only the text would tell: SOME_VOCABULARY."""
    size = cfg.model.vocab_size or cfg.tokenizer.vocab_size or SOME_VOCABULARY
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=size))


def compile_step(cfg: RunConfig, program: PlacedProgram) -> Any:
    """One call of the training program, `train.steps_per_call` steps, compiled from shapes.

    Raises:
      DoesNotFitError: the compiler ran out of the device's memory.
    """
    shape = (cfg.train.steps_per_call, cfg.data.batch_size, cfg.model.context_length)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch(
        tokens=ids,
        targets=ids,
        weights=jax.ShapeDtypeStruct(shape, jnp.float32),
        segment_ids=ids if cfg.data.mask_documents else None,
    )
    lowered = program.lower(batch)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(*out_of_memory(str(error))) from None


def out_of_memory(message: str) -> tuple[str, int | None]:
    """The compiler's message as "needs 19.71G, has 15.75G" and the bytes needed.

    Of another message the first line, and None.
    """
    amount = r"([\d.]+)([KMGT]?)"
    counts = {
        "needs {} for temporaries, has {}": "temporaries \\({}\\) exceeds available HBM \\({}\\)",
        "needs {}, has {}": "Used {} of {}",
    }
    for says, pattern in counts.items():
        if found := re.search(pattern.format(amount, amount), message):
            needs, unit, has, other = found.groups()
            size = float(needs) * 1024 ** " KMGT".index(unit or " ")
            return says.format(needs + unit, has + other), int(size)
    return message.splitlines()[0], None


def show_bound(
    cfg: RunConfig,
    layout: Layout,
    state: TrainState,
    sent: dict[str, Collective] | None,
    attention: Choice | None,
) -> None:
    """Prints what a step computes, reads and sends, and the least time that it can take.

    sent: None where it is not known; it then counts for nothing.
    """
    tokens = cfg.data.batch_size * cfg.model.context_length
    cost = flops_per_token(cfg)
    size, unit = (1e12, "TFLOP") if cost.full * tokens >= 1e12 else (1e9, "GFLOP")
    print(
        f"a step of {tokens:,} tokens: {cost.full * tokens / size:,.2f} {unit}, "
        f"{cost.causal * tokens / size:,.2f} with causal attention"
    )
    if sent is None:
        print("what the devices send is not known: the compiler cannot write this program down")
    elif sent:
        rows = [[k, f"{c.count:,}", f"{c.num_bytes / 1e6:,.1f}"] for k, c in sent.items()]
        print_table([["a device in a step", "number", "MB"], *rows])
    else:
        print("no collectives: the devices send each other nothing")
    kind = layout.mesh.devices.flat[0].device_kind
    alone = plan.least_time(cfg, layout, state, sent or {}, attention, kind)
    peak = flops.peak_flops(kind, "bfloat16")
    if alone is None or peak is None:
        print(f"{kind}: its speed is not known, so no bound on the time of a step")
        return
    least = max(alone)
    print(
        f"at least {least * 1e3:.1f} ms a step: arithmetic {alone.compute_s * 1e3:.1f}, memory "
        f"{alone.memory_s * 1e3:.1f}, network {alone.network_s * 1e3:.1f} ms if each were alone"
    )
    mfu = cost.causal * tokens / (least * peak * layout.mesh.size)
    print(
        f"MFU at most {mfu:.0%} (causal attention) of {peak / 1e12:.0f} TFLOP/s in bfloat16 on "
        f"each of {layout.mesh.size} devices"
    )
    if cfg.model.dtype != "bfloat16":
        print(f"model.dtype={cfg.model.dtype} is slower than that: the peak is of bfloat16")
