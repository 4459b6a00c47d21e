"""Averages that merge exactly: a sum and the weight it is to be divided by."""

import numpy as np
from flax import struct

from jaxlm.core.arrays import Array


@struct.dataclass
class Mean:
    """`total / weight`, kept apart so that parts of unequal size merge into the true mean.

    `jax.tree.map(jnp.add, a, b)` and `lax.psum` merge two; both are f32[...] of one shape.
    """

    total: Array | np.ndarray
    weight: Array | np.ndarray

    def compute(self) -> Array | np.ndarray:
        """The mean; NaN where nothing was counted."""
        return self.total / self.weight


Metrics = dict[str, Mean]
