"""Logical axes and mesh axes: what is split over what, and what cannot be."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxlm.core import trees
from jaxlm.core.params import ParamSpec, abstract_params, zeros
from jaxlm.core.sharding import sharding_of, uneven_dimensions

RULES = {"width": ("fsdp",), "out": ("tensor",), "rows": ("data", "fsdp")}
MESH = AbstractMesh((2, 4, 3), ("data", "fsdp", "tensor"))

SPECS = {
    "blocks": {"w": ParamSpec(shape=(5, 8, 6), axes=("layers", "width", "out"), init=zeros)},
    "gain": ParamSpec(shape=(8,), axes=("width",), init=zeros, num_in=0),
}


def test_a_dimension_is_split_over_the_mesh_axes_of_its_logical_axis():
    where = sharding_of(("rows", "seq", "out"), MESH, RULES)
    assert where.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert where.shard_shape((16, 5, 6)) == (2, 5, 2)


def test_abstract_weights_say_which_part_each_device_holds():
    leaves = trees.flatten(abstract_params(SPECS, MESH, RULES))
    parts = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in leaves.items()}
    assert parts == {"blocks/w": (5, 2, 2), "gain": (2,)}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())


def test_without_a_mesh_abstract_weights_lie_nowhere():
    assert all(x.sharding is None for x in trees.flatten(abstract_params(SPECS)).values())


@pytest.mark.parametrize(
    ("fsdp", "tensor", "expected"),
    [
        (4, 3, []),
        (3, 2, [("blocks/w", 1, "width", 8, 3), ("gain", 0, "width", 8, 3)]),
        (8, 4, [("blocks/w", 2, "out", 6, 4)]),
    ],
)
def test_what_does_not_divide_is_found(fsdp, tensor, expected):
    mesh = AbstractMesh((1, fsdp, tensor), ("data", "fsdp", "tensor"))
    found = uneven_dimensions(SPECS, mesh, RULES)
    assert [(u.path, u.dimension, u.axis, u.size, u.parts) for u in found] == expected
    assert all(np.mod(u.size, u.parts) for u in found)
