"""Which micro-batch, remat and mesh make a step fit, and the fastest of them, by our own count.

Nothing is compiled here. None of the three changes what is computed beyond rounding, so that each
is a way to run the same training.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.analysis import flops, roofline
from jaxlm.analysis.hlo import Collective
from jaxlm.analysis.memory import LayerBytes
from jaxlm.core.config import FLAG, ConfigError, as_typed, flatten
from jaxlm.models import kinds
from jaxlm.models.backends import Choice, choose_linear
from jaxlm.train import estimates
from jaxlm.train.config import RunConfig
from jaxlm.train.estimates import Held
from jaxlm.train.layouts import MESH_AXES, Layout, MeshConfig, make_layout
from jaxlm.train.program import hyper_values, make_program, trained_specs
from jaxlm.train.state import TrainState

REMATS = ("none", "dots", "full")
MOST_TENSOR = 8  # devices that wait for each other in every product
NOTHING_FITS = (
    "no micro-batch, remat or mesh is enough; train.vocab_chunk takes the logits apart, else the "
    "model or its context must be smaller, or the devices more"
)
# Candidates are compared as if on this where the device's own speed is not known.
NOMINAL = "TPU v5 lite"


class Candidate(NamedTuple):
    """A way to run the step. bound: with what is sent by our count, too."""

    cfg: RunConfig
    layout: Layout
    held: Held
    bound: roofline.Bound

    @property
    def time(self) -> tuple[float, float]:
        """To compare: the least time of a step, then what would be spent without any overlap."""
        return max(self.bound), sum(self.bound)

    @property
    def description(self) -> str:
        parts = self.cfg.train.num_microbatches
        batches = "one micro-batch" if parts == 1 else f"{parts} micro-batches"
        return f"{self.layout.description}, {batches}, remat {self.cfg.model.remat}"


def candidates(cfg: RunConfig, devices: Sequence[Any], attention: Choice | None) -> list[Candidate]:
    """Every way to run the step of `cfg` that divides among the devices, the fastest first."""
    model = kinds.param_specs(cfg.model)
    kind = devices[0].device_kind
    program = make_program(cfg, np.ones(cfg.model.vocab_size or 0, np.int32))
    shapes = jax.eval_shape(lambda: program.init(cfg.seed, hyper_values(cfg)))
    frozen = {} if cfg.lora.rank is None else model
    has_remat = "remat" in {field.name for field in dataclasses.fields(cfg.model)}
    remats = [{"remat": remat} for remat in REMATS] if has_remat else [{}]
    layers: dict[Any, LayerBytes] = {}
    found = []
    for layout, mesh in _layouts(cfg, model, devices):
        state = layout.state(shapes, trained_specs(cfg, model), frozen)
        for parts in _divisors(cfg.data.batch_size):
            if cfg.data.batch_size // parts % layout.num_rows or (parts > 1 and cfg.model.carries):
                continue
            for remat in remats:
                each = dataclasses.replace(
                    cfg,
                    mesh=mesh,
                    model=dataclasses.replace(cfg.model, **remat),
                    train=dataclasses.replace(cfg.train, num_microbatches=parts),
                )
                key = (each.model.remat, *sorted(estimates.split_axes(layout).items()))
                if key not in layers:
                    layers[key] = _layer_of(each, layout, attention)
                held = estimates.held(each, layout, state, layers[key])
                sent = estimates.sent(each, layout)
                counted = (each, layout, state, sent, attention)
                bound = least_time(*counted, kind) or least_time(*counted, NOMINAL)
                assert bound is not None  # the speed of NOMINAL is known
                found.append(Candidate(each, layout, held, bound))
    return sorted(found, key=lambda each: each.time)


def fastest(found: Sequence[Candidate], most_bytes: float | None) -> Candidate | None:
    """The first of the candidates that takes no more of a device, by our count."""
    return next((c for c in found if most_bytes is None or c.held.total <= most_bytes), None)


def nearest(cfg: RunConfig, found: Sequence[Candidate], most_bytes: float) -> Candidate | None:
    """Of those that take no more the one that changes fewest fields of `cfg`, then the fastest."""
    fit = [c for c in found if c.held.total <= most_bytes]
    return min(fit, key=lambda c: (len(changes(cfg, c.cfg)), c.time), default=None)


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """The flags that make `after` of `before`."""
    old, new = flatten(before), flatten(after)
    return [f"{FLAG}{path}={as_typed(new[path])}" for path in new if new[path] != old[path]]


def least_time(
    cfg: RunConfig,
    layout: Layout,
    state: TrainState,
    sent: Mapping[str, Collective],
    attention: Choice | None,
    kind: str,
) -> roofline.Bound | None:
    """The roofline of a step on devices of this kind; None where their speed is not known."""
    chip, peak = roofline.chip_of(kind), flops.peak_flops(kind, "bfloat16")
    if chip is None or peak is None:
        return None
    # So that remat=dots keeps them.
    made_of_products = attention is None or attention.name in ("plain", "split")
    work = estimates.work_of_device(cfg, layout, state, sent, made_of_products)
    return roofline.bound(work, chip, peak)


def held_by(cfg: RunConfig, layout: Layout, state: TrainState, attention: Choice | None) -> Held:
    """What a step of `cfg` itself holds, by our count. state: shapes and shardings."""
    return estimates.held(cfg, layout, state, _layer_of(cfg, layout, attention))


def _layer_of(cfg: RunConfig, layout: Layout, attention: Choice | None) -> LayerBytes:
    functions = {"linear": choose_linear(estimates.platform_of(layout))}
    if attention is not None:
        functions["attend"] = attention.attend
    return estimates.layer_of_device(cfg, layout, **functions)


def _layouts(
    cfg: RunConfig, specs: dict[str, Any], devices: Sequence[Any]
) -> Iterator[tuple[Layout, MeshConfig]]:
    """The grids over which a model and some part of the batch can be split.

    On a CPU, whose devices share its memory, only the one that the config has.
    """
    own = make_layout(cfg.mesh, specs, num_rows=cfg.data.batch_size, devices=devices)
    yield own, cfg.mesh
    if devices[0].platform == "cpu":
        return
    splits_weights = cfg.mesh.layout in ("fsdp", "fsdp_tp")
    for number in _divisors(len(devices)):
        for tensor in _divisors(number):
            for fsdp in _divisors(number // tensor):
                sizes = (number // tensor // fsdp, fsdp, tensor)
                if tensor > (MOST_TENSOR if cfg.mesh.layout == "fsdp_tp" else 1):
                    continue
                if fsdp > 1 and not splits_weights:
                    continue
                if sizes == tuple(own.mesh.shape.values()):
                    continue
                mesh = dataclasses.replace(cfg.mesh, **dict(zip(MESH_AXES, sizes, strict=True)))
                try:
                    rows = cfg.data.batch_size
                    yield make_layout(mesh, specs, num_rows=rows, devices=devices), mesh
                except ConfigError:  # something does not divide
                    continue


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
