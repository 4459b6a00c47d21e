"""Fixed sinusoidal position vectors, and positions that restart in each packed segment."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def sinusoidal(
    positions: Array, d_model: int, layout: Literal["interleaved", "half"] = "interleaved"
) -> Array:
    """Sines and cosines of position / 10000^(2i/d_model).

    Args:
      positions: i32[..., S], counted from 0.
      d_model: even.
      layout: "interleaved" puts sin, cos side by side; "half" all sines, then all cosines.
    Returns:
      f32[..., S, d_model].
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    frequency = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = positions[..., None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if layout == "half":
        return jnp.concatenate([sin, cos], axis=-1)
    return jnp.stack([sin, cos], axis=-1).reshape(*angles.shape[:-1], d_model)


def segment_positions(segment_ids: Array) -> Array:
    """Positions that restart at 0 where the segment changes: i32[..., S] -> i32[..., S]."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[-1]), segment_ids.shape)
    starts = jnp.concatenate(
        [
            jnp.ones_like(segment_ids[..., :1], bool),
            segment_ids[..., 1:] != segment_ids[..., :-1],
        ],
        axis=-1,
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=index.ndim - 1)
