"""Scaled dot-product attention with grouped key/value heads: the plain definition.

Every other backend has the signature of `attend` and this one as its oracle.
"""

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def attention_mask(
    q_positions: Array,
    kv_positions: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
) -> Array:
    """Which keys each query may read: bool[..., S, T], True = keep.

    Args:
      q_positions: i32[..., S]; kv_positions: i32[..., T].
      causal: keys at later positions are dropped.
      window: only the nearest `window` positions are kept, the query's own included.
      q_segments, kv_segments: i32[B, S], i32[B, T]; only equal segments see each other.
    """
    distance = q_positions[..., :, None] - kv_positions[..., None, :]
    mask = jnp.ones(distance.shape, bool)
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= jnp.abs(distance) < window
    if q_segments is not None and kv_segments is not None:
        mask = mask & (q_segments[..., :, None] == kv_segments[..., None, :])
    return mask


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis where `mask` is True, 0 elsewhere.

    A row with nothing to attend to is all zero, in value and in gradient.
    scores: f32[..., T]; mask: bool, broadcastable to it.
    """
    lowest = jnp.finfo(scores.dtype).min  # finite: -inf minus -inf would be NaN in an empty row
    weights = jax.nn.softmax(jnp.where(mask, scores, lowest), axis=-1)
    return jnp.where(mask, weights, 0)


def attention_weights(
    q: Array,
    k: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
    q_positions: Array | None = None,
    kv_positions: Array | None = None,
) -> Array:
    """The attention map, f32[B, H, S, T]; arguments as for `attend`."""
    B, S, H, Dh = q.shape
    T, K = k.shape[1:3]
    # The query heads of a group are rows of one product with the key head that they share.
    rows = jnp.swapaxes(q, 1, 2).reshape(B, K, H // K * S, Dh)
    keys = jnp.swapaxes(k, 1, 2)
    scores = jnp.einsum("bkre,bkte->bkrt", rows, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(B, H, S, T) * Dh**-0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = attention_mask(
        jnp.arange(S) if q_positions is None else q_positions,
        jnp.arange(T) if kv_positions is None else kv_positions,
        causal=causal,
        window=window,
        q_segments=q_segments,
        kv_segments=kv_segments,
    )
    return masked_softmax(scores, mask if mask.ndim == 2 else mask[:, None])


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
) -> Array:
    """softmax(q k^T / sqrt(Dh)) v, each query over the keys that it may read.

    Args:
      q: [B, S, H, Dh]; k, v: [B, T, K, Dh] with H a multiple of K. Query head h reads key/value
        head h // (H / K). Scores and softmax are float32.
      causal, window, q_segments, kv_segments: see `attention_mask`.
      softcap: scores become softcap * tanh(scores / softcap) before the mask.
      q_positions: i32[S] or [B, S], kv_positions: i32[T] or [B, T]; default 0, 1, ...
    Returns:
      [B, S, H, Dh] in the dtype of v; zeros where a query may read nothing.
    Source: Vaswani et al. 2017, eq. 1; Ainslie et al. 2023 for grouped heads.
    """
    weights = attention_weights(
        q,
        k,
        causal=causal,
        window=window,
        softcap=softcap,
        q_segments=q_segments,
        kv_segments=kv_segments,
        q_positions=q_positions,
        kv_positions=kv_positions,
    )
    B, H, S, T = weights.shape
    K, Dh = v.shape[2:]
    rows = weights.reshape(B, K, H // K * S, T).astype(v.dtype)
    values = jnp.swapaxes(v, 1, 2)
    out = jnp.einsum("bkrt,bkte->bkre", rows, values, preferred_element_type=jnp.float32)
    return jnp.swapaxes(out.reshape(B, H, S, Dh), 1, 2).astype(v.dtype)
