"""One declaration per weight: shape, logical axes and initial distribution.

From a tree of `ParamSpec` follow the initial values, the counts, the shapes without memory, the
decay mask, which weights Muon may orthogonalise, and the sharding.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.sharding import Rules, sharding_of

LAYERS = "layers"  # the logical axis over which blocks are stacked and scanned
LOOKUP_AXES = ("vocab", "positions", "types")  # a leading axis that is indexed, not multiplied


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """One weight.

    shape: sizes, the stacked `layers` axis first where there is one.
    axes: a logical name for each dimension; the sharding rules speak of these names.
    init: `init(key, spec) -> array` for one layer (the `layers` axis already taken off).
    num_in: how many dimensions after `layers` a product with this weight sums over; the rest are
      outputs. wq [N, D, H, Dh] has 1, wo [N, H, Dh, D] has 2. Fans, Muon and LoRA read it.
    dtype: float32, the master copy; the compute dtype is the model's business.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Callable[[Array, "ParamSpec"], Array]
    num_in: int = 1
    dtype: Any = jnp.float32

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")

    @property
    def stacked(self) -> bool:
        """Whether it is that of N layers, [N, ...]."""
        return self.axes[:1] == (LAYERS,)

    @property
    def layer(self) -> "ParamSpec":
        """The same weight without its `layers` axis."""
        if not self.stacked:
            return self
        return dataclasses.replace(self, shape=self.shape[1:], axes=self.axes[1:])

    @property
    def size(self) -> int:
        """How many numbers it has, those of all layers."""
        return math.prod(self.shape)

    @property
    def fans(self) -> tuple[int, int]:
        """(inputs, outputs) of the product, a stacked axis not counted."""
        shape = self.layer.shape
        return math.prod(shape[: self.num_in]), math.prod(shape[self.num_in :])

    @property
    def kind(self) -> str:
        """ "lookup" (rows are indexed), "matrix" (multiplied), or "vector" (gains and biases)."""
        axes = self.layer.axes
        if len(axes) < 2 or self.num_in == 0:
            return "vector"
        return "lookup" if axes[0] in LOOKUP_AXES else "matrix"


def zeros(key: Array, spec: ParamSpec) -> Array:
    """All zero; the key is not used."""
    del key
    return jnp.zeros(spec.shape, spec.dtype)


def ones(key: Array, spec: ParamSpec) -> Array:
    """All one; the key is not used."""
    del key
    return jnp.ones(spec.shape, spec.dtype)


def truncated_normal(sigma: float) -> Callable[[Array, ParamSpec], Array]:
    """Normal of standard deviation `sigma` before the cut at three sigma."""

    def init(key, spec):
        return sigma * jax.random.truncated_normal(key, -3.0, 3.0, spec.shape, spec.dtype)

    return init


def xavier(scale: float = 1.0) -> Callable[[Array, ParamSpec], Array]:
    """Truncated normal with sigma^2 = scale^2 * 2 / (in + out) before the cut.

    `scale` may be traced.
    Source: Glorot and Bengio 2010, eq. 12 for the variance.
    """

    def init(key, spec):
        return truncated_normal(scale * math.sqrt(2 / sum(spec.fans)))(key, spec)

    return init


def orthogonal(key: Array, spec: ParamSpec) -> Array:
    """Of a matrix [in, out] the columns are orthonormal, or the rows where those are fewer.

    By Gram-Schmidt, twice, on a normal matrix: plain products, which every device and every vmap
    takes, where a library's QR is a call out of the program.
    Source: Saxe et al. 2013, "Exact solutions to the nonlinear dynamics of learning in deep linear
      neural networks".
    """
    rows, columns = spec.shape
    times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    drawn = jax.random.normal(key, (max(spec.shape), min(spec.shape)), spec.dtype)

    def place(n, q):
        before = jnp.where(jnp.arange(q.shape[1]) < n, q, 0)
        v = jax.lax.dynamic_index_in_dim(q, n, axis=1, keepdims=False)
        for _ in range(2):
            v = v - times(before, times(v, before))
        return jax.lax.dynamic_update_index_in_dim(q, v / jnp.linalg.norm(v), n, axis=1)

    q = jax.lax.fori_loop(0, min(rows, columns), place, drawn)
    return q if rows >= columns else q.T


def path_key(key: Array, path: str) -> Array:
    """The key of one leaf. It depends on the path alone, so adding a weight moves no other."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def init_params(key: Array, specs: dict) -> Params:
    """Initial values for a tree of specs; consumes `key`.

    Each layer of a stacked weight has a key of its own, so the first layers of a deeper model
    start as those of a shallower one.
    """

    def leaf(path, spec):
        leaf_key = path_key(key, path)
        if not spec.stacked:
            return spec.init(leaf_key, spec)
        layer_keys = jax.vmap(lambda i: jax.random.fold_in(leaf_key, i))(jnp.arange(spec.shape[0]))
        return jax.vmap(lambda k: spec.init(k, spec.layer))(layer_keys)

    return trees.map_with_path(leaf, specs)


def abstract_params(specs: dict, mesh: Mesh | None = None, rules: Rules | None = None) -> Params:
    """`jax.ShapeDtypeStruct`s in place of arrays: shapes, dtypes and shardings, no memory.

    Args:
      mesh, rules: where the arrays are to lie; without a mesh they have no sharding.
    """

    def leaf(_, spec):
        where = None if mesh is None else sharding_of(spec.axes, mesh, rules or {})
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=where)

    return trees.map_with_path(leaf, specs)


def count_params(specs: dict) -> int:
    """How many numbers the specs declare."""
    return sum(spec.size for spec in trees.flatten(specs).values())


def check_params(params: Params, specs: dict) -> None:
    """Raises ValueError naming the first paths that are missing, extra or of another shape."""
    have, want = trees.flatten(params), trees.flatten(specs)
    problems = [
        f"{path}: missing, expected shape {want[path].shape}" for path in want if path not in have
    ]
    problems += [f"{path}: not a weight of this model" for path in have if path not in want]
    problems += [
        f"{path}: shape {tuple(have[path].shape)}, expected {want[path].shape}"
        for path in want
        if path in have and tuple(have[path].shape) != want[path].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError("; ".join(problems[:3]) + more)
