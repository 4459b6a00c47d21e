"""Attention block by block on any backend: memory grows with the length, not with its square.

The softmax is summed up block by block of keys ("online"); the backward pass computes the scores
again from the log-sum-exp of each row. Blocks that causality or the window leave out are not
computed.

Source: Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory"; Dao 2023,
"FlashAttention-2", algorithms 1 and 2.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.kernels.blocks import LOWEST, pad_to_blocks


class _Layout(NamedTuple):
    """What is known before the arrays are; S and T are multiples of the blocks."""

    block_q: int
    block_k: int
    causal: bool
    window: int | None
    in_order: bool  # positions are 0, 1, ..., so that whole blocks can be left out


class _Marks(NamedTuple):
    """What masks: i32[B or 1, S] or [B or 1, T]; segments may be None; at padding valid is 0."""

    q_positions: Array
    kv_positions: Array
    kv_valid: Array
    q_segments: Array | None
    kv_segments: Array | None


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = True,
    window: int | None = None,
    softcap: Array | float | None = None,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
    q_positions: Array | None = None,
    kv_positions: Array | None = None,
    block_q: int = 256,
    block_k: int = 256,
) -> Array:
    """`jaxlm.nn.attention.attend`, never holding more than a block of the attention map.

    Arguments and result as there; no gradient with respect to `softcap`.
    block_q, block_k: queries and keys of a block; the map's part held is [B, H, block_q, block_k].
    """
    B, S, H, Dh = q.shape
    T, K = k.shape[1:3]
    block_q, block_k = min(block_q, S), min(block_k, T)
    in_order = q_positions is None and kv_positions is None
    marks = _Marks(
        pad_to_blocks(_rows(jnp.arange(S) if q_positions is None else q_positions), 1, block_q),
        pad_to_blocks(_rows(jnp.arange(T) if kv_positions is None else kv_positions), 1, block_k),
        pad_to_blocks(jnp.ones((1, T), bool), 1, block_k),
        None if q_segments is None else pad_to_blocks(_rows(q_segments), 1, block_q),
        None if kv_segments is None else pad_to_blocks(_rows(kv_segments), 1, block_k),
    )
    queries = pad_to_blocks(jnp.moveaxis(q.reshape(B, S, K, H // K, Dh), 1, 3), 3, block_q)
    keys, values = (pad_to_blocks(jnp.swapaxes(x, 1, 2), 2, block_k) for x in (k, v))
    layout = _Layout(block_q, block_k, causal, window, in_order)
    out = cast(Array, _attend(queries, keys, values, softcap, marks, layout))
    return jnp.moveaxis(out[:, :, :, :S], 3, 1).reshape(B, S, H, Dh)


def _rows(x: Array) -> Array:
    """[S] or [B, S] -> [B or 1, S]."""
    return jnp.atleast_2d(x)


# q: [B, K, G, S, Dh] with G = H / K query heads to a key head; k, v: [B, K, T, Dh].
@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q, k, v, softcap, marks, layout):
    return _forward(q, k, v, softcap, marks, layout)[0]


def _forward(q, k, v, softcap, marks, layout):
    """The result [B, K, G, S, Dh] and the log-sum-exp of each row's scores f32[B, K, G, S]."""
    B, K, G, S, Dh = q.shape
    block_q, num_k = layout.block_q, k.shape[2] // layout.block_k

    def one_block_of_queries(i):
        rows = _slice(q, i, block_q, 3)

        def add_keys(j, carry):
            top, total, acc = carry
            scores, keep = _scores(
                rows, _slice(k, j, layout.block_k, 2), softcap, marks, i, j, layout
            )
            new_top = jnp.maximum(top, jnp.max(jnp.where(keep, scores, LOWEST), axis=-1))
            weights = jnp.where(keep, jnp.exp(scores - new_top[..., None]), 0)
            shrink = jnp.exp(top - new_top)
            part = _product(
                "bkgst,bkte->bkgse", weights.astype(v.dtype), _slice(v, j, layout.block_k, 2)
            )
            return (
                new_top,
                total * shrink + jnp.sum(weights, axis=-1),
                acc * shrink[..., None] + part,
            )

        shape = (B, K, G, block_q)
        start = (jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros((*shape, Dh)))
        first, last = _keys_of(i, num_k, layout)
        top, total, acc = jax.lax.fori_loop(first, last, add_keys, start)
        some = total != 0  # NaN stays NaN
        total = jnp.where(some, total, 1)
        out = jnp.where(some[..., None], acc / total[..., None], 0).astype(v.dtype)
        return out, jnp.where(some, top + jnp.log(total), 0)

    out, lse = jax.lax.map(one_block_of_queries, jnp.arange(S // block_q))
    return _join(out), _join(lse)


def _save(q, k, v, softcap, marks, layout):
    out, lse = _forward(q, k, v, softcap, marks, layout)
    return out, (q, k, v, softcap, marks, out, lse)


def _backward(layout, saved, d_out):
    q, k, v, softcap, marks, out, lse = saved
    block_q, block_k, num_q = layout.block_q, layout.block_k, q.shape[3] // layout.block_q
    scale = q.shape[-1] ** -0.5
    # What a row's weights lose together, so that they go on summing to one.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

    def one_block_of_keys(dq, j):
        keys, values = _slice(k, j, block_k, 2), _slice(v, j, block_k, 2)

        def add_queries(i, carry):
            dq, dk, dv = carry
            rows, d_rows = _slice(q, i, block_q, 3), _slice(d_out, i, block_q, 3)
            scores, keep = _scores(rows, keys, softcap, marks, i, j, layout)
            weights = jnp.where(keep, jnp.exp(scores - _slice(lse, i, block_q, 3)[..., None]), 0)
            dv += _product("bkgst,bkgse->bkte", weights.astype(v.dtype), d_rows)
            d_weights = _product("bkgse,bkte->bkgst", d_rows, values)
            d_scores = weights * (d_weights - _slice(delta, i, block_q, 3)[..., None])
            if softcap is not None:
                d_scores *= 1 - jnp.square(scores / softcap)
            d_scores = (d_scores * scale).astype(q.dtype)
            dk += _product("bkgst,bkgse->bkte", d_scores, rows)
            more = _slice(dq, i, block_q, 3) + _product("bkgst,bkte->bkgse", d_scores, keys)
            return jax.lax.dynamic_update_slice_in_dim(dq, more, i * block_q, 3), dk, dv

        zeros = jnp.zeros(keys.shape, jnp.float32)
        first, last = _queries_of(j, num_q, layout)
        dq, dk, dv = jax.lax.fori_loop(first, last, add_queries, (dq, zeros, zeros))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = jax.lax.scan(
        one_block_of_keys, jnp.zeros(q.shape, jnp.float32), jnp.arange(k.shape[2] // block_k)
    )
    no_gradient = None if softcap is None else jnp.zeros_like(softcap)
    return dq.astype(q.dtype), _join(dk, 2), _join(dv, 2), no_gradient, None


_attend.defvjp(_save, _backward)


def _scores(rows, keys, softcap, marks, i, j, layout):
    """Capped scores f32[B, K, G, block_q, block_k] of two blocks, and which of them to keep."""
    scores = _product("bkgse,bkte->bkgst", rows, keys) * rows.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)

    def of_q(x):
        return _slice(x, i, layout.block_q, 1)[:, :, None]

    def of_k(x):
        return _slice(x, j, layout.block_k, 1)[:, None, :]

    distance = of_q(marks.q_positions) - of_k(marks.kv_positions)
    keep = of_k(marks.kv_valid)
    if layout.causal:
        keep &= distance >= 0
    if layout.window is not None:
        keep &= jnp.abs(distance) < layout.window
    if marks.q_segments is not None:
        keep &= of_q(marks.q_segments) == of_k(marks.kv_segments)
    return scores, keep[:, None, None]


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _slice(x: Array, i: Any, block: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _join(blocks: Array, axis: int = 3) -> Array:
    """[number, ..., block, ...] -> [..., number * block, ...] at `axis` of the result."""
    blocks = jnp.moveaxis(blocks, 0, axis)
    shape = list(blocks.shape)
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return blocks.reshape(shape)


def _keys_of(i, num_k: int, layout: _Layout):
    """First and last + 1 of the blocks of keys that the i-th block of queries reads."""
    if not layout.in_order:
        return 0, num_k
    top = (i + 1) * layout.block_q - 1  # the last query
    return _reach(i * layout.block_q, top, num_k, layout.block_k, layout, causal_end=top)


def _queries_of(j, num_q: int, layout: _Layout):
    """First and last + 1 of the blocks of queries that read the j-th block of keys."""
    if not layout.in_order:
        return 0, num_q
    low, top = j * layout.block_k, (j + 1) * layout.block_k - 1
    return _reach(low, top, num_q, layout.block_q, layout, causal_start=low)


def _reach(low, top, number, block, layout, causal_start=None, causal_end=None):
    """Blocks of the other side that positions low..top can be paired with."""
    start, end = 0, number * block - 1
    if layout.window is not None:
        start, end = low - layout.window + 1, top + layout.window - 1
    if layout.causal and causal_start is not None:
        start = jnp.maximum(start, causal_start)
    if layout.causal and causal_end is not None:
        end = jnp.minimum(end, causal_end)
    first, last = jnp.maximum(start, 0) // block, jnp.minimum(end // block + 1, number)
    return first, jnp.maximum(first, last)
