"""The product with a weight, and what a bias adds to it."""

import jax.numpy as jnp

from jaxlm.core.arrays import Array


def linear(x: Array, w: Array, num_in: int = 1) -> Array:
    """x [..., *in] times w [*in, *out], summed over the `num_in` axes of in -> [..., *out]."""
    return jnp.tensordot(x, w, num_in)


def add_bias(y: Array, bias: Array | None) -> Array:
    """y [..., D] plus a float32 bias [D], in the dtype of y; y itself with None.

    The sum is made in float32, and so is the bias' gradient, which adds up every position: a sum in
    bfloat16 stops growing after 256 equal terms.
    """
    return y if bias is None else (y + bias).astype(y.dtype)
