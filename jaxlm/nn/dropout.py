"""Dropout with a rate that may be traced."""

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def dropout(x: Array, rate: Array | float, key: Array | None) -> Array:
    """Zeroes each entry with probability `rate`, scales the rest by 1 / (1 - rate).

    x: any shape; key: consumed, None leaves x as it is; rate: in [0, 1), may be traced.
    Source: Srivastava et al. 2014, section 10 for the inverted form.
    """
    if key is None:
        return x
    share = 1.0 - jnp.float32(rate)  # in bfloat16, 0.9 would be 0.8984, and every value too large
    keep = jax.random.bernoulli(key, share, x.shape)
    return jnp.where(keep, (x / share).astype(x.dtype), 0)
