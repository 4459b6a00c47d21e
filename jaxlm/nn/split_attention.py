"""Causal attention in a few groups of queries, each with only the keys that it may read.

The plain definition computes all of the map and masks half of it away. Here each group of
`block_q` queries is the plain definition over the keys from its window's start to its own end, so
that of 4 groups 6 of 16 parts are never computed. All sizes are static; the gradient is JAX's own.
Made of the plain one, it stands beside it and not in `jaxlm.kernels`.
"""

from typing import Any

import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.nn import attention


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
    block_q: int | None = None,
) -> Array:
    """`jaxlm.nn.attention.attend`; arguments and result as there.

    Given positions, or without a causal mask or window, it is the plain one in one group.
    block_q: queries of a group; by default four groups of 32 to 128, or more of 128.
    """
    S, T = q.shape[1], k.shape[1]
    block_q = max(32, min(128, S // 4)) if block_q is None else block_q
    kinds: dict[str, Any] = {"causal": causal, "window": window, "softcap": softcap}
    if q_positions is not None or kv_positions is not None or not (causal or window):
        kinds |= {"q_segments": q_segments, "kv_segments": kv_segments}
        kinds |= {"q_positions": q_positions, "kv_positions": kv_positions}
        return attention.attend(q, k, v, **kinds)
    groups = []
    for start in range(0, S, block_q):
        end = min(start + block_q, S)
        low = 0 if window is None else max(start - window + 1, 0)
        high = min(end if causal or window is None else end + window - 1, T)
        rows, keys = slice(start, end), slice(low, high)
        groups.append(
            attention.attend(
                q[:, rows],
                k[:, keys],
                v[:, keys],
                **kinds,
                q_segments=None if q_segments is None else q_segments[:, rows],
                kv_segments=None if kv_segments is None else kv_segments[:, keys],
                q_positions=jnp.arange(start, end),
                kv_positions=jnp.arange(low, high),
            )
        )
    return jnp.concatenate(groups, axis=1)
