"""--job=compile: the real training step compiled for hardware that need not be there.

Says whether it fits, what lies where, what is sent, and the least time a step can take. For TPUs
that are not there (--topology=v5e:4x4) the compiler is that of the libtpu package, which runs on
any machine; --topology=local compiles for what is here.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxlm.analysis import flops, roofline
from jaxlm.analysis.hlo import Collective, collectives
from jaxlm.core import params as params_lib
from jaxlm.core import trees
from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data.batches import Batch
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.setup import backends_of, layout_of
from jaxlm.jobs.train import flops_per_token
from jaxlm.models import kinds
from jaxlm.reports.tables import print_table
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout, weight_of
from jaxlm.train.program import PlacedProgram, hyper_values, place_program

# The name of a slice with so many chips, as a TPU machine has it in its environment: versions 4
# and 5p count cores, two a chip.
SLICES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}


class DoesNotFitError(Exception):
    """The compiler found no place for what the program holds at once; the message is its count."""


def main(launch: Launch) -> int:
    topology = launch.flags.topology
    devices = topology_devices(topology)
    cfg, name = launch_config(launch)
    cfg = with_some_vocabulary(cfg)
    if cfg.train.parallel == "pmap":
        raise ConfigError(f"{FLAG}train.parallel=pmap: only jit is compiled ahead")
    model = kinds.build(cfg.model)
    layout = layout_of(cfg, model.specs, devices)
    backends = backends_of(cfg, layout, devices[0].platform)
    token_bytes = np.ones(cfg.model.vocab_size or 0, np.int32)
    program = place_program(cfg, token_bytes, layout, hyper_values(cfg), **backends.options)
    print(f"config    {name}: {params_lib.count_params(model.specs):,} parameters")
    kind = devices[0].device_kind
    print(f"devices   {layout.mesh.size} of {len(devices)} {kind}: {layout.description}")
    print(f"attention {backends}", flush=True)
    print()
    show_state(program)
    print()
    started = time.perf_counter()
    try:
        compiled = compile_step(cfg, program)
    except DoesNotFitError as error:
        print(f"does not fit: {error}")
        return 1
    print(f"compiled in {time.perf_counter() - started:.0f} s")
    fits = show_memory(compiled.memory_analysis(), roofline.chip_of(kind))
    sent = collectives_of(compiled, cfg.train.steps_per_call)
    print()
    show_bound(cfg, layout, program, sent, kind)
    return 0 if fits else 1


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
    """`cfg` with a vocabulary size even where only the text would tell: then it is 256."""
    size = cfg.model.vocab_size or cfg.tokenizer.vocab_size or 256
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
        raise DoesNotFitError(out_of_memory(str(error))) from None


def out_of_memory(message: str) -> str:
    """ "needs 19.71G, has 15.75G" out of the compiler's message, else its first line."""
    amount = r"([\d.]+[KMGT]?)"
    if found := re.search(rf"temporaries \({amount}\) exceeds available HBM \({amount}\)", message):
        return f"needs {found[1]} for temporaries, has {found[2]}"
    found = re.search(rf"Used {amount} of {amount}", message)
    return f"needs {found[1]}, has {found[2]}" if found else message.splitlines()[0]


def show_memory(sizes: Any, chip: roofline.Chip | None) -> bool:
    """Prints what a compiled program takes of a device, by its own account. Is there as much?"""
    parts = {
        "the state and a batch": sizes.argument_size_in_bytes,
        "results beside it": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "activations, gradients and other temporaries": sizes.temp_size_in_bytes,
        "the program": sizes.generated_code_size_in_bytes,
    }
    needed = sum(parts.values())
    fits = chip is None or needed <= chip.memory_bytes
    room = f" of {chip.memory_bytes / 2**20:,.0f}" if chip else ""
    inside = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in parts.items())
    print(f"{'fits' if fits else 'does not fit'}: {needed / 2**20:,.1f}{room} MiB a device")
    print(f"  {inside}")
    return fits


def device_bytes(leaf: Any) -> int:
    """What one device holds of an array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def show_state(program: PlacedProgram) -> None:
    """Prints the weights, how each is split, and what one device holds of it."""
    weights = trees.flatten(program.state.params)
    held = dict.fromkeys(weights, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.opt_state):
        name = weight_of(path, leaf.shape, weights)
        if name is not None:
            held[name] += device_bytes(leaf)
    rows = [["weight", "shape", "split over", "MiB a device", "its optimizer's"]]
    for path, leaf in weights.items():
        split = ["+".join(_mesh_axes(leaf.sharding, part)) or "-" for part in leaf.sharding.spec]
        here = (device_bytes(leaf), held[path])
        rows.append([path, str(list(leaf.shape)), " ".join(split), *map(_mebibytes, here)])
    total = (sum(map(device_bytes, weights.values())), sum(held.values()))
    rows.append(["all", "", "", *map(_mebibytes, total)])
    frozen = sum(map(device_bytes, jax.tree.leaves(program.state.frozen)))
    if frozen:
        rows.append(["frozen weights", "", "", _mebibytes(frozen), ""])
    print_table(rows, left=True)


def _mesh_axes(where: NamedSharding, part: Any) -> list[str]:
    """The mesh axes over which a dimension is really split: those of more than one device."""
    names = [] if part is None else [part] if isinstance(part, str) else part
    return [name for name in names if where.mesh.shape[name] > 1]


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f}"


def show_bound(
    cfg: RunConfig,
    layout: Layout,
    program: PlacedProgram,
    sent: dict[str, Collective] | None,
    kind: str,
) -> None:
    """Prints what a step computes, reads and sends, and the least time that it can take.

    sent: None where it is not known; it then counts for nothing.
    """
    model = kinds.build(cfg.model)
    tokens = cfg.data.batch_size * cfg.model.context_length
    cost = flops_per_token(cfg, model)
    print(
        f"a step of {tokens:,} tokens: {cost.full * tokens / 1e12:,.2f} TFLOP, "
        f"{cost.causal * tokens / 1e12:,.2f} with causal attention"
    )
    if sent is None:
        print("what the devices send is not known: the compiler cannot write this program down")
    else:
        rows = [[k, f"{c.count:,}", f"{c.num_bytes / 1e6:,.1f}"] for k, c in sent.items()]
        rows = rows or [["no collectives", "", ""]]
        print_table([["a device in a step", "number", "MB"], *rows])
    chip = roofline.chip_of(kind)
    peak = flops.peak_flops(kind, "bfloat16")
    if chip is None or peak is None:
        print(f"{kind}: its speed is not known, so no bound on the time of a step")
        return
    work = work_of_device(cfg, layout, program, cost.causal * tokens, sent or {})
    alone = roofline.bound(work, chip, peak)
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


def work_of_device(
    cfg: RunConfig,
    layout: Layout,
    program: PlacedProgram,
    step_flops: float,
    sent: dict[str, Collective],
) -> roofline.Work:
    """Our own count for a step: XLA's counts the body of a loop once and a kernel not at all."""
    again, model = cfg.model.remat == "full", kinds.build(cfg.model)
    parts = {
        axis: layout.mesh.shape["tensor"]
        for axis, mesh_axes in layout.tables.weights.items()
        if "tensor" in mesh_axes
    }
    products = roofline.product_bytes(
        model.specs,
        "embed" in model.head,
        tokens=cfg.data.batch_size * cfg.model.context_length // layout.num_rows,
        width=jnp.dtype(cfg.model.dtype).itemsize,
        products=4 if again else 3,
        parts=parts,
    )
    held = jax.tree.leaves((program.state.params, program.state.opt_state))
    gradient = sum(map(device_bytes, jax.tree.leaves(program.state.params)))
    return roofline.Work(
        flops=step_flops * (4 / 3 if again else 1) / layout.mesh.size,
        # The optimizer reads and writes the state, and reads a gradient that was written.
        memory_bytes=products + 2 * sum(map(device_bytes, held)) + 2 * gradient,
        sent_bytes=roofline.sent_bytes(sent),
    )
