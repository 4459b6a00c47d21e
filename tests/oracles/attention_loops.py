"""Attention by the definition: float64, one query and one head at a time."""

import numpy as np


def may_read(i, j, *, causal, window, q_segment, kv_segment):
    """Whether the query at position i may read the key at position j."""
    if causal and j > i:
        return False
    if window is not None and abs(i - j) >= window:
        return False
    return q_segment == kv_segment


def attend(
    q,
    k,
    v,
    *,
    causal=True,
    window=None,
    softcap=None,
    q_segments=None,
    kv_segments=None,
    q_positions=None,
    kv_positions=None,
):
    """q [B, S, H, Dh]; k, v [B, T, K, Dh] -> (out [B, S, H, Dh], weights [B, H, S, T])."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, S, H, Dh = q.shape
    T, K = k.shape[1:3]
    q_at = np.broadcast_to(np.arange(S) if q_positions is None else q_positions, (B, S))
    kv_at = np.broadcast_to(np.arange(T) if kv_positions is None else kv_positions, (B, T))
    out, weights = np.zeros((B, S, H, Dh)), np.zeros((B, H, S, T))
    for b in range(B):
        for h in range(H):
            g = h * K // H  # query heads share key/value heads in runs of H / K
            for s in range(S):
                readable = [
                    t
                    for t in range(T)
                    if may_read(
                        q_at[b, s],
                        kv_at[b, t],
                        causal=causal,
                        window=window,
                        q_segment=None if q_segments is None else q_segments[b, s],
                        kv_segment=None if kv_segments is None else kv_segments[b, t],
                    )
                ]
                if not readable:
                    continue
                scores = np.array([q[b, s, h] @ k[b, t, g] for t in readable]) / np.sqrt(Dh)
                if softcap is not None:
                    scores = softcap * np.tanh(scores / softcap)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                for t, share in zip(readable, shares, strict=True):
                    weights[b, h, s, t] = share
                    out[b, s, h] += share * v[b, t, g]
    return out, weights
