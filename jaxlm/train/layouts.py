"""How a run is spread over devices: a mesh, and tables from logical axes to its axes.

The devices are a grid of data x fsdp x tensor. The batch is split over the first two. What else is
split, the tables say; the model and the step know nothing of it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import FLAG, ConfigError, check_choices
from jaxlm.core.params import abstract_params
from jaxlm.core.sharding import Rules, make_constrain, sharding_of, uneven_dimensions
from jaxlm.train.state import TrainState

MESH_AXES = ("data", "fsdp", "tensor")
PMAP_AXIS = "devices"

ACTIVATIONS: Rules = {"batch": ("data", "fsdp")}
FSDP: Rules = {"embed": ("fsdp",)}
TENSOR: Rules = dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ("tensor",))


class Tables(NamedTuple):
    """Which logical axes are split: of the weights; of the optimizer's arrays of their shape."""

    weights: Rules
    optimizer: Rules


TABLES: dict[str, Tables] = {
    "dp": Tables({}, {}),
    "fsdp": Tables(FSDP, FSDP),
    "fsdp_tp": Tables(FSDP | TENSOR, FSDP | TENSOR),
    "zero1": Tables({}, {"embed": ("data", "fsdp")}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices as a grid, and what is split over it. The same run on any grid, up to rounding.

    data: parts of the batch. None: the devices that are there, as many as the batch can be split
      among; one in a process on a CPU, whose devices share its cores.
    fsdp: parts of the batch again, and of each weight along the model's width.
    tensor: parts of the heads, of the feed-forward's width and of the vocabulary.
    layout: dp repeats the weights everywhere; zero1 too, and splits the optimizer's state over data
      and fsdp; fsdp and fsdp_tp split both, over fsdp alone or over tensor as well.
    whole: logical axes that are not split whatever the layout says, such as vocab.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1
    layout: Literal["dp", "fsdp", "fsdp_tp", "zero1"] = "fsdp_tp"
    whole: tuple[Literal["embed", "heads", "kv_heads", "mlp", "vocab"], ...] = ()

    def __post_init__(self):
        check_choices(self)
        for name in MESH_AXES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.tensor > 1 and self.layout != "fsdp_tp":
            raise ValueError(f"tensor={self.tensor}: layout={self.layout} splits nothing over it")


class Layout(NamedTuple):
    """Where the arrays of a run lie. whole: a sharding that repeats an array on every device."""

    mesh: Mesh
    tables: Tables
    whole: NamedSharding

    @property
    def num_rows(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[name] for name in ACTIVATIONS["batch"])

    @property
    def description(self) -> str:
        """ "data 4, fsdp 2": the mesh axes with more than one device."""
        sizes = [f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1]
        return ", ".join(sizes) or "one alone"

    @property
    def functions(self) -> dict[str, Callable]:
        """What the model's `build` is told; nothing on one device."""
        if self.mesh.size == 1:
            return {}
        return {"constrain": make_constrain(self.mesh, {**ACTIVATIONS, **self.tables.weights})}

    def split_attend(self, attend: Callable[..., Array]) -> Callable[..., Array]:
        """An attention each device runs for its rows and heads: for kernels XLA cannot split."""
        both = all(axis in self.tables.weights for axis in ("heads", "kv_heads"))
        heads = self.tables.weights["heads"] if both else None
        rows = ACTIVATIONS["batch"]
        of_heads, of_rows = PartitionSpec(rows, None, heads), PartitionSpec(rows)

        def split(q, k, v, *, q_segments=None, kv_segments=None, **kinds):
            segments = {"q_segments": q_segments, "kv_segments": kv_segments}

            def part(q, k, v, segments):
                return attend(q, k, v, **segments, **kinds)

            return jax.shard_map(
                part,
                mesh=self.mesh,
                in_specs=(of_heads, of_heads, of_heads, of_rows),
                out_specs=of_heads,
                check_vma=False,
            )(q, k, v, segments)

        return split

    @property
    def batches(self) -> NamedSharding:
        """Of what the steps of one call read, [steps, B, S]."""
        return sharding_of(("steps", "batch"), self.mesh, ACTIVATIONS)

    def local_rows(self, batch_size: int) -> slice:
        """Which rows of a batch the devices of this process read."""
        where = sharding_of(("batch",), self.mesh, ACTIVATIONS)
        indices = where.addressable_devices_indices_map((batch_size,)).values()
        parts = {index[0].indices(batch_size)[:2] for index in indices if index is not None}
        return slice(min(start for start, _ in parts), max(stop for _, stop in parts))

    def place(self, batches: Any, batch_size: int) -> Any:
        """The rows that this process made, [steps, rows, S], as a part of [steps, B, S]."""
        if jax.process_count() == 1:
            return batches

        def part_of_all(x):
            shape = (len(x), batch_size, *x.shape[2:])
            return jax.make_array_from_process_local_data(self.batches, x, shape)

        return jax.tree.map(part_of_all, batches)

    def weights(self, specs: dict) -> Params:
        """The shapes and shardings of weights."""
        return abstract_params(specs, self.mesh, self.tables.weights)

    def state(self, state: TrainState, specs: dict, frozen_specs: dict) -> TrainState:
        """`state`, of which only shapes are read, as shapes and shardings.

        An array of the optimizer lies with the weight it belongs to, see `weight_of`; every array
        that belongs to none is whole on each device.

        Args:
          specs: of what is trained. frozen_specs: of the weights that are not; {} for none.
        """
        optimizer = trees.flatten(abstract_params(specs, self.mesh, self.tables.optimizer))

        def whole(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.whole)

        def as_its_weight(path, leaf):
            name = weight_of(path, leaf.shape, optimizer)
            if name is None:
                return whole(leaf)
            weight = optimizer[name]
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=weight.sharding)

        return jax.tree.map(whole, state).replace(
            params=self.weights(specs),
            frozen=self.weights(frozen_specs),
            opt_state=jax.tree_util.tree_map_with_path(as_its_weight, state.opt_state),
        )


def weight_of(path: tuple, shape: tuple[int, ...], weights: Mapping[str, Any]) -> str | None:
    """Of which weight an array of the optimizer is: its path ends with it, and it has its shape.

    Args:
      path: of JAX's keys. weights: {path: something with a shape}.
    """
    names = jax.tree_util.keystr(path, simple=True, separator=trees.SEPARATOR)
    names = names.split(trees.SEPARATOR)
    ends = [trees.SEPARATOR.join(names[start:]) for start in range(len(names))]
    return next((end for end in ends if end in weights and weights[end].shape == shape), None)


def make_layout(
    cfg: MeshConfig,
    specs: dict,
    *,
    num_rows: int,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """The layout of a config, for a model with `specs` and batches of `num_rows` at a time.

    Args:
      devices: None: those of this machine.
    Raises:
      ConfigError: not enough devices, or something would be split into unequal parts.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = cfg.data
    if data is None:
        alone = devices[0].platform == "cpu" and jax.process_count() == 1
        most = 1 if alone else len(devices) // (cfg.fsdp * cfg.tensor)
        data = max((d for d in range(1, most + 1) if num_rows % (d * cfg.fsdp) == 0), default=1)
    sizes = (data, cfg.fsdp, cfg.tensor)
    if math.prod(sizes) > len(devices):
        given = " ".join(
            f"{FLAG}mesh.{n}={s}" for n, s in zip(MESH_AXES, sizes, strict=True) if s > 1
        )
        raise ConfigError(
            f"{given}: {math.prod(sizes)} devices are needed, there are {len(devices)} "
            f"({devices[0].platform})"
        )
    if len({device.process_index for device in devices[: math.prod(sizes)]}) < jax.process_count():
        raise ConfigError(
            f"{FLAG}mesh.data={data}: {math.prod(sizes)} of {len(devices)} devices would be used, "
            f"and some of the {jax.process_count()} processes have none of them"
        )
    mesh = Mesh(np.array(devices[: math.prod(sizes)]).reshape(sizes), MESH_AXES)
    tables = Tables(
        *({a: m for a, m in table.items() if a not in cfg.whole} for table in TABLES[cfg.layout])
    )
    layout = Layout(mesh, tables, sharding_of((), mesh, {}))
    _check_divides(cfg, layout, specs, num_rows)
    return layout


# Which field of the model's config gives a logical axis its size.
_FIELDS = {
    "embed": "d_model",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "mlp": "d_ff",
    "vocab": "vocab_size",
}


def _check_divides(cfg: MeshConfig, layout: Layout, specs: dict, num_rows: int) -> None:
    parts = layout.num_rows
    if num_rows % parts:
        raise ConfigError(
            f"{FLAG}mesh.data={layout.mesh.shape['data']} {FLAG}mesh.fsdp={cfg.fsdp}: "
            f"{num_rows} rows (data.batch_size / train.num_microbatches) cannot be split evenly "
            f"among {parts} devices; change {FLAG}data.batch_size or the mesh"
        )
    for rules in layout.tables:
        for found in uneven_dimensions(specs, layout.mesh, rules)[:1]:
            given = " ".join(f"{FLAG}mesh.{n}={layout.mesh.shape[n]}" for n in found.mesh_axes)
            raise ConfigError(
                f"{given}: {found.path}: dimension {found.dimension} ({found.axis}) is "
                f"{found.size}, not a multiple of {found.parts}; change "
                f"{FLAG}mesh.{found.mesh_axes[-1]} or {FLAG}model.{_FIELDS[found.axis]}, or leave "
                f"the axis whole with {FLAG}mesh.whole={found.axis}"
            )
