"""What a training step holds, computes and sends on each device: counted before it is compiled.

The state is exact. Of activations, what JAX keeps of a layer; of everything else, what a step
cannot do without. The compiler may put it into less, or into more where it copies; how near the
count comes to its own is in configs/SCALE.md.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.analysis import flops, memory, roofline
from jaxlm.analysis.hlo import Collective
from jaxlm.analysis.memory import LayerBytes
from jaxlm.core import params as params_lib
from jaxlm.core import trees
from jaxlm.models import kinds, lora
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout
from jaxlm.train.state import TrainState

# Arrays of the logits' size, f32[B, S, V], that are held at once: a CPU's compiler keeps logits,
# softmax and gradient apart, a TPU's makes one of the other.
LOGITS = {"cpu": 3}
# Of what one layer's backward pass needs, the share that is there at once: fusions save the rest.
INSIDE = {"tpu": 0.4}


class Held(NamedTuple):
    """Bytes of one device when it holds most.

    state: weights, optimizer and a batch. kept: activations, from the forward to the backward pass.
    gradients: of the trained weights; twice with microbatches, which are summed up. others: the
    logits, or all that the backward pass of one layer needs; weights in the compute dtype; weights
    gathered from other devices.
    """

    state: int
    kept: int
    gradients: int
    others: int

    @property
    def total(self) -> int:
        return sum(self)


def device_bytes(tree: Any) -> int:
    """What one device holds of arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def split_axes(layout: Layout) -> dict[str, int]:
    """{logical axis: among how many devices} of what each device computes a part of."""
    return {
        axis: layout.mesh.shape["tensor"]
        for axis, mesh_axes in layout.tables.weights.items()
        if "tensor" in mesh_axes
    }


def layer_of_device(cfg: RunConfig, layout: Layout, **functions: Callable) -> LayerBytes:
    """`memory.layer_bytes` of the part of a layer that one device computes.

    functions: attend, for one device, where there is attention, and linear; as of the model's
      `build`.
    """
    model = memory.share_of(cfg.model, split_axes(layout))
    if platform_of(layout) == "cpu" and model.dtype != "float32":
        model = dataclasses.replace(model, dtype="float32")  # as which a CPU computes and keeps it
    return memory.layer_bytes(model, segments=cfg.data.mask_documents, **functions)


def held(cfg: RunConfig, layout: Layout, state: TrainState, layer: LayerBytes) -> Held:
    """What a device holds at the peak of a step.

    Args:
      state: shapes and shardings. layer: as `layer_of_device` gives it.
    """
    model, rows, platform = cfg.model, rows_of_device(cfg, layout), platform_of(layout)
    S, N, width = model.context_length, layer.number, jnp.dtype(model.dtype).itemsize
    specs = trees.flatten(kinds.param_specs(model))
    # Weights in the compute dtype, and weights gathered for their use, with the gradient that is
    # then scattered: of the layers (stacked), one of which is there at a time, and of the tables.
    narrow, gathered = {True: 0, False: 0}, {True: 0, False: 0}
    for path, weight in trees.flatten(layout.weights(kinds.param_specs(model))).items():
        spec, size = specs[path], device_bytes(weight) // 4
        used = width if spec.kind == "matrix" else 4
        narrow[spec.stacked] += size * used if used < 4 else 0
        if (parts := _gathered_parts(spec.axes, layout)) > 1:
            whole = 2 * size * parts * used
            more = gathered[True] + whole // N if spec.stacked else max(gathered[False], whole)
            gathered[spec.stacked] = more
    if cfg.lora.rank is not None and model.remat != "full":  # merged weights are kept, see `attach`
        targets = lora.target_specs(trees.unflatten(specs), cfg.lora.targets).values()
        narrow[True] += width * sum(spec.size for spec in targets)
    trained = device_bytes(state.params)
    of_layers = device_bytes(state.params.get("blocks", {}))
    of_head = device_bytes(state.params.get("unembed", ()))
    kept = layer.number * layer.kept * rows
    ids = -(-(model.vocab_size or 0) // split_axes(layout).get("vocab", 1))
    logits = LOGITS.get(platform, 1) * 4 * rows * S * min(ids, cfg.train.vocab_chunk or ids)
    again = int(INSIDE.get(platform, 1) * rows * (layer.whole - layer.kept))
    # The backward pass of the head, of the layers, and its end, when every gradient is there.
    head = (kept + narrow[True] + narrow[False] + logits + gathered[False], of_head)
    layers = (kept + narrow[True] + again + gathered[True], of_layers + of_head)
    others, gradients = max(head, layers, (gathered[False], trained), key=sum)
    sums = trained if cfg.train.num_microbatches > 1 else 0
    batch = 12 * cfg.train.steps_per_call * rows * cfg.train.num_microbatches * S
    return Held(
        state=state_bytes(state) + batch,
        kept=min(kept, others),
        gradients=gradients + sums,
        others=max(0, others - kept),
    )


def state_bytes(state: TrainState) -> int:
    """What a device holds of a state, its few single numbers left out."""
    return device_bytes((state.params, state.opt_state, state.frozen, state.carry))


def at_most(cfg: RunConfig, layout: Layout, state: TrainState) -> int:
    """More than `held` comes to, without a trace: many times what each weight reads and gives."""
    S, (N, H, _) = cfg.model.context_length, cfg.model.attention
    numbers = 0  # of a token
    for spec in trees.flatten(kinds.param_specs(cfg.model)).values():
        read, given = spec.fans
        layers = spec.shape[0] if spec.stacked else 1
        numbers += layers * (given + (read if spec.kind == "matrix" else 0))
    row = S * (4 * 8 * numbers + 24 * N * H * S)
    return held(cfg, layout, state, LayerBytes(row, row, 1)).total


def rows_of_device(cfg: RunConfig, layout: Layout) -> int:
    """Rows of the batch that a device works on at a time."""
    return cfg.data.batch_size // cfg.train.num_microbatches // layout.num_rows


def _gathered_parts(axes: tuple[str, ...], layout: Layout) -> int:
    """Of how many devices the parts of a weight are put together where it is used."""
    names = {name for axis in axes for name in layout.tables.weights.get(axis, ())}
    return math.prod(layout.mesh.shape[name] for name in names - {"tensor"})


def platform_of(layout: Layout) -> str:
    """cpu, gpu or tpu."""
    return layout.mesh.devices.flat[0].platform


def sent(cfg: RunConfig, layout: Layout) -> dict[str, Collective]:
    """What a device sends in a step, for weights, gradients and activations.

    As `jaxlm.analysis.hlo.collectives`, of which it leaves out what is small; a sum counts as an
    all-reduce where the compiler may scatter it.
    """
    model, parts = cfg.model, cfg.train.num_microbatches
    width, mesh = jnp.dtype(model.dtype).itemsize, layout.mesh.shape
    specs = kinds.param_specs(model)
    found = dict.fromkeys(("all-reduce", "all-gather", "reduce-scatter"), 0)
    for path, weight in trees.flatten(layout.weights(specs)).items():
        spec = trees.flatten(specs)[path]
        size = device_bytes(weight) // 4
        gathered = _gathered_parts(spec.axes, layout)
        if gathered > 1:
            narrow = width if spec.kind == "matrix" else 4
            found["all-gather"] += (2 if spec.stacked else 1) * parts * size * gathered * narrow
            found["reduce-scatter"] += parts * size * gathered * narrow
        if layout.num_rows > gathered:  # several devices have the same part, and other rows
            found["all-reduce"] += parts * 4 * size
    if cfg.mesh.layout == "zero1" and layout.num_rows > 1:
        found["all-gather"] += 4 * params_lib.count_params(specs)
    if mesh["tensor"] > 1:
        passes = 2 + 2 + 2 * (model.remat == "full")
        stream = rows_of_device(cfg, layout) * parts * model.context_length * (model.d_model or 0)
        found["all-reduce"] += passes * model.attention[0] * stream * width
    return {kind: Collective(0, num_bytes) for kind, num_bytes in found.items() if num_bytes}


def flops_per_token(cfg: RunConfig) -> flops.TrainFlops:
    """Training FLOPs a token by both conventions.

    With adapters, a matrix that has none takes no gradient: its third product, 2 FLOPs a
    parameter, is not counted. Nor is merging, which a step does once for all its tokens.
    """
    model = kinds.build(cfg.model)
    cost = flops.of_model(cfg.model, model)
    if cfg.lora.rank is None:
        return cost
    matmul = flops.matmul_params(model.specs, "embed" in model.head)
    targets = lora.target_specs(model.specs, cfg.lora.targets)
    left_out = 2 * (matmul - params_lib.count_params(targets))
    return flops.TrainFlops(full=cost.full - left_out, causal=cost.causal - left_out)


def repeated_flops(cfg: RunConfig, keeps_attention: bool) -> float:
    """FLOPs a token of what the backward pass computes again, with causal attention.

    keeps_attention: whether `model.remat=dots` keeps the results of attention.
    """
    (N, H, Dh), model = cfg.model.attention, kinds.build(cfg.model)
    head = (cfg.model.d_model or 0) * (cfg.model.vocab_size or 0)
    attention = 4 * N * H * Dh * flops.keys_per_query(cfg.model.context_length, model.window)
    layers = 2 * (flops.matmul_params(model.specs, "embed" in model.head) - head) + attention
    again = {"none": 0, "dots": 0 if keeps_attention else attention, "full": layers}
    return again[cfg.model.remat] + (2 * head if cfg.train.vocab_chunk else 0)


def work_of_device(
    cfg: RunConfig,
    layout: Layout,
    state: TrainState,
    sent: Mapping[str, Collective],
    keeps_attention: bool = False,
) -> roofline.Work:
    """Our own count for a step: XLA's counts the body of a loop once and a kernel not at all."""
    tokens = cfg.data.batch_size * cfg.model.context_length
    parts, model = cfg.train.num_microbatches, kinds.build(cfg.model)
    products = roofline.product_bytes(
        model.specs,
        "embed" in model.head,
        tokens=rows_of_device(cfg, layout) * cfg.model.context_length,
        width=jnp.dtype(cfg.model.dtype).itemsize,
        products=4 if cfg.model.remat == "full" else 3,
        parts=split_axes(layout),
    )
    gradient = device_bytes(state.params)
    return roofline.Work(
        flops=tokens
        * (flops_per_token(cfg).causal + repeated_flops(cfg, keeps_attention))
        / layout.mesh.size,
        # The optimizer reads and writes the state, and reads a gradient that was written; of
        # several parts the gradients are added to their sum, which is read and written.
        memory_bytes=parts * products
        + 2 * device_bytes((state.params, state.opt_state))
        + 2 * gradient * (2 * parts - 1 if parts > 1 else 1),
        sent_bytes=roofline.sent_bytes(sent),
    )
