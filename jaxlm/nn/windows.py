"""What a position sees of the ones before it, at fixed distances: windows, and a cache of them."""

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def windows(
    x: Array,
    size: int,
    dilation: int = 1,
    *,
    fill: float = 0,
    segment_ids: Array | None = None,
    before: Array | None = None,
) -> Array:
    """[B, S, ...] -> [B, S, size, ...]: at each position the entries 0, 1, ... dilations back.

    The oldest comes first, the position's own last. What lies before the row, or in another
    segment, is `fill`.

    Args:
      segment_ids: i32[B, S]. before: [B, (size - 1) * dilation, ...], what the row goes on from.
    """
    B, S, *rest = x.shape
    past = (size - 1) * dilation
    if before is None:
        before = jnp.full((B, past, *rest), fill, jax.dtypes.canonicalize_dtype(x.dtype))
    whole = jnp.concatenate([before, x], axis=1)
    back = range(past, -1, -dilation)
    seen = jnp.stack([whole[:, past - n : past - n + S] for n in back], axis=2)
    if segment_ids is None:
        return seen
    same = windows(segment_ids, size, dilation, fill=-1) == segment_ids[:, :, None]
    return jnp.where(same.reshape(B, S, size, *[1] * len(rest)), seen, fill)


def append(before: Array, x: Array, lengths: Array | None = None) -> Array:
    """What later positions go on from, as many entries as `before` [B, R, ...] has.

    lengths: i32[B], how many entries of x [B, S, ...] a row takes; None: all.
    """
    if lengths is None:
        return jnp.concatenate([before, x], axis=1)[:, x.shape[1] :]
    take = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, before.shape[1]))
    return take(jnp.concatenate([before, x], axis=1), lengths)
