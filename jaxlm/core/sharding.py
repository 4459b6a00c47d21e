"""Where an array lies on a mesh of devices, by the logical axes of its dimensions.

A table says over which mesh axes a logical axis is split; a dimension whose axis it does not name
is whole on every device.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.core import trees
from jaxlm.core.arrays import Array

Rules = Mapping[str, tuple[str, ...]]  # logical axis -> mesh axes


def sharding_of(axes: tuple[str, ...], mesh: Mesh, rules: Rules) -> NamedSharding:
    """Where an array lies whose dimensions have these logical axes; ("batch",) splits the first."""
    return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) for axis in axes)))


def make_constrain(mesh: Mesh, rules: Rules) -> Callable[[Array, tuple[str, ...]], Array]:
    """Builds `constrain(x, logical axes) -> x`: a compiled program puts x where they say."""

    def constrain(x, axes):
        return jax.lax.with_sharding_constraint(x, sharding_of(axes, mesh, rules))

    return constrain


def unconstrained(x: Array, axes: tuple[str, ...]) -> Array:
    """The `constrain` of a program in which nothing is split: x itself."""
    del axes
    return x


class Uneven(NamedTuple):
    """A dimension of a weight that cannot be split: `size` is no multiple of `parts`."""

    path: str
    dimension: int
    axis: str  # logical
    size: int
    mesh_axes: tuple[str, ...]
    parts: int


def uneven_dimensions(specs: dict, mesh: Mesh, rules: Rules) -> list[Uneven]:
    """The dimensions that `rules` would split into unequal parts, in the order of their paths."""
    found = []
    for path, spec in trees.flatten(specs).items():
        for dimension, (axis, size) in enumerate(zip(spec.axes, spec.shape, strict=True)):
            mesh_axes = rules.get(axis, ())
            parts = math.prod(mesh.shape[name] for name in mesh_axes)
            if size % parts:
                found.append(Uneven(path, dimension, axis, size, mesh_axes, parts))
    return found
