"""Rotary position embedding in both layouts that weights in the wild use."""

from typing import Literal

import jax.numpy as jnp

from jaxlm.core.arrays import Array

Layout = Literal["interleaved", "half"]


def rope_angles(
    positions: Array,
    head_dim: int,
    theta: float = 10_000.0,
    scaling: tuple[float, ...] | None = None,
) -> tuple[Array, Array]:
    """Cosines and sines of the rotation of each pair of channels at each position.

    Pair i turns by positions * theta^(-2i/head_dim).

    Args:
      positions: i32[..., S], counted from 0.
      head_dim: even.
      scaling: (factor, low, high, length), as `llama3_scaled` takes them; None: not scaled.
    Returns:
      cos, sin: f32[..., S, head_dim / 2]. Float32 whatever the compute dtype: bfloat16 would
      round position 257 to 256.
    Source: Su et al. 2021, "RoFormer", eq. 15.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequency = llama3_scaled(frequency, *scaling)
    angles = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angles), jnp.sin(angles)


def llama3_scaled(frequency: Array, factor: float, low: float, high: float, length: float) -> Array:
    """Lowers the frequencies that turn less than `low` times in `length` positions by `factor`.

    Those that turn more than `high` times stay, those between go over linearly. So a model trained
    on `length` positions reads texts `factor` times as long.

    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models"; Meta's reference code of 3.1.
    """
    turns = length * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * ((1 - kept) / factor + kept)


def apply_rope(x: Array, cos: Array, sin: Array, layout: Layout = "interleaved") -> Array:
    """Rotates the channel pairs of every head.

    Args:
      x: [..., S, H, Dh], queries or keys.
      cos, sin: f32[..., S, Dh / 2] from `rope_angles`.
      layout: which channels pair up: "interleaved" (2i, 2i+1), the default, or "half"
        (i, i + Dh/2), as Hugging Face weights expect. The output keeps the layout.
    Returns:
      [..., S, H, Dh] in the dtype of x, rotated in float32.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    x32 = x.astype(jnp.float32)
    if layout == "interleaved":
        pairs = x32.reshape(*x.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
    else:
        a, b = jnp.split(x32, 2, axis=-1)
    turned = (a * cos - b * sin, a * sin + b * cos)
    if layout == "interleaved":
        y = jnp.stack(turned, axis=-1).reshape(x.shape)
    else:
        y = jnp.concatenate(turned, axis=-1)
    return y.astype(x.dtype)
