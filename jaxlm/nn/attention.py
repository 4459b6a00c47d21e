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
    if q_segments is not None:
        mask = mask & (q_segments[..., :, None] == kv_segments[..., None, :])
    return mask


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis where `mask` is True, 0 elsewhere.

    A row with nothing to attend to is all zero, in value and in gradient.
    scores: f32[..., T]; mask: bool, broadcastable to it.
    """
    scores = jnp.where(mask, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # In an empty row top is -inf, and -inf - -inf would be NaN; any finite number will do there.
    weights = jnp.exp(scores - jnp.maximum(top, jnp.finfo(scores.dtype).min))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


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
    q = q.reshape(B, S, K, H // K, Dh)
    scores = jnp.einsum("bskge,btke->bkgst", q, k, preferred_element_type=jnp.float32)
    scores = scores * Dh**-0.5
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
    mask = mask if mask.ndim == 2 else mask[:, None, None]
    return masked_softmax(scores, mask).reshape(B, H, S, T)


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
    weights = weights.reshape(B, K, H // K, S, T).astype(v.dtype)
    out = jnp.einsum("bkgst,btke->bskge", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(B, S, H, Dh).astype(v.dtype)
