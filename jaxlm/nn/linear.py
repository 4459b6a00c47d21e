"""The product with a weight, and what a bias adds to it."""

import jax
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


def float32_product(x: Array, w: Array) -> Array:
    """x [..., D] times w [D, V], of one dtype -> f32[..., V], summed in float32.

    Of a narrow dtype it has only reverse-mode derivatives. Their products are narrow too, of a
    cotangent rounded to that dtype: JAX's own would widen x and w and multiply in float32.
    """
    if x.dtype == jnp.float32:
        return jnp.matmul(x, w)
    return _float32_product(x, w)


@jax.custom_vjp
def _float32_product(x, w):
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def _save(x, w):
    return _float32_product(x, w), (x, w)


def _backward(saved, d_logits):
    x, w = saved
    rows, d_rows = (y.astype(x.dtype).reshape(-1, y.shape[-1]) for y in (x, d_logits))
    return (d_rows @ w.T).reshape(x.shape), rows.T @ d_rows


_float32_product.defvjp(_save, _backward)
