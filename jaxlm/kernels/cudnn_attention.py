"""Attention by NVIDIA's cuDNN, through `jax.nn.dot_product_attention`."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
    q_positions: Array | None = None,
    kv_positions: Array | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """`jaxlm.nn.attention.attend` in bfloat16 or float16; arguments and result as there.

    Segments become a mask bool[B, 1, S, T]: with them memory grows with the square of the length.
    implementation: "xla" runs anywhere, for tests of this function's own part.
    Raises:
      ValueError: softcap or positions, which cuDNN does not have.
    """
    if softcap is not None:
        raise ValueError("attention by cudnn has no softcap; choose attention=chunked")
    if q_positions is not None or kv_positions is not None:
        raise ValueError("attention by cudnn takes no positions; choose attention=chunked")
    mask = None
    if q_segments is not None and kv_segments is not None:
        mask = (q_segments[:, :, None] == kv_segments[:, None, :])[:, None]
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0 if causal else window - 1),
        implementation=implementation,
    )
    some = _rows_with_a_key(q.shape[1], k.shape[1], causal, window, mask)
    # Where a row may read nothing, the library gives the mean of v.
    return out if some is None else jnp.where(some[..., None, None], out, 0)


def _rows_with_a_key(S: int, T: int, causal: bool, window: int | None, mask: Array | None):
    """bool[B or 1, S]: the queries that may read a key; None where that is all of them."""
    if mask is None and (window is None or T >= S):
        return None
    distance = jnp.arange(S)[:, None] - jnp.arange(T)
    keep = jnp.ones((S, T), bool)
    if causal:
        keep &= distance >= 0
    if window is not None:
        keep &= jnp.abs(distance) < window
    return jnp.any(keep if mask is None else keep & mask[:, 0], axis=-1).reshape(-1, S)
