"""The product with a weight kept in bfloat16, half the bytes to read, summed in float32.

The signature of `jaxlm.nn.linear.linear`, but that the weight's outputs come first. For decoding,
where no gradient is taken.
"""

import math

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def narrow(w: Array, num_in: int = 1) -> Array:
    """w [*in, *out] as `linear` reads it: bf16[*out, *in]."""
    return jnp.moveaxis(w, range(num_in), range(-num_in, 0)).astype(jnp.bfloat16)


def linear(x: Array, w: Array, num_in: int = 1) -> Array:
    """x [..., *in], rounded to bfloat16, times w bf16[*out, *in] -> [..., *out] in x's dtype."""
    lead, out = x.shape[: x.ndim - num_in], w.shape[: w.ndim - num_in]
    rows = x.astype(w.dtype).reshape(math.prod(lead), -1)
    matrix = w.reshape(math.prod(out), -1)
    if len(rows) == 1:
        # XLA on a CPU widens all of the weight for a product with one vector, not for one with two.
        y = _product(matrix, jnp.concatenate([rows.T, rows.T], axis=1), 0)[:, 0]
    else:
        y = _product(rows, matrix, 1)
    return y.reshape(*lead, *out).astype(x.dtype)


def _product(a, b, b_axis):
    dims = (((1,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
