"""What attention in blocks shares."""

import jax.numpy as jnp

from jaxlm.core.arrays import Array

LOWEST = float(jnp.finfo(jnp.float32).min)  # finite: -inf minus -inf would be NaN in an empty row


def pad_to_blocks(x: Array, axis: int, block: int) -> Array:
    """Zeros at the end of `axis`, so that its length is a multiple of `block`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, widths)
