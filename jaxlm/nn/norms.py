"""Normalisation over the last axis, statistics in float32."""

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def rms_norm(x: Array, gain: Array, eps: float = 1e-5) -> Array:
    """Scales x to unit root-mean-square over its last axis.

    Args:
      x: [..., D], any float dtype; statistics are taken in float32.
      gain: [D], multiplied in float32.
      eps: added to the mean square, inside the root.
    Returns:
      [..., D] in the dtype of x.
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    x32 = x.astype(jnp.float32)  # squares of bfloat16 lose the small entries
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + eps) * gain).astype(x.dtype)


def layer_norm(x: Array, gain: Array, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """Centres x over its last axis and scales it to unit variance (the biased estimate).

    Args:
      x: [..., D], any float dtype; statistics are taken in float32.
      gain, bias: [D], applied in float32; no bias with None.
      eps: added to the variance, inside the root.
    Returns:
      [..., D] in the dtype of x.
    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", eq. 4.
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + eps) * gain
    return (y if bias is None else y + bias).astype(x.dtype)
