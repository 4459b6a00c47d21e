"""Logits filters in float64, by sorting one row at a time."""

import numpy as np


def probabilities(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The distribution float64[V] to draw from, given one row of logits [V]."""
    logits = np.asarray(logits, np.float64)
    best_first = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if temperature == 0:
        kept = {best_first[0]: 1.0}
    else:
        top = logits.max()
        kept = {i: np.exp((logits[i] - top) / temperature) for i in best_first}
    if top_k is not None:
        kept = dict(list(kept.items())[:top_k])
    if top_p is not None:
        total, mass, nucleus = sum(kept.values()), 0.0, {}
        for i, weight in kept.items():
            if mass >= top_p * total and nucleus and top_p < 1:
                break
            nucleus[i] = weight
            mass += weight
        kept = nucleus
    if min_p is not None:
        most = max(kept.values())
        kept = {i: weight for i, weight in kept.items() if weight >= min_p * most}
    result = np.zeros(len(logits))
    for i, weight in kept.items():
        result[i] = weight
    return result / result.sum()
