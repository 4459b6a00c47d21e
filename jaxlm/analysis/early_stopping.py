"""The rule of early stopping, applied to losses that were recorded to the end."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class EarlyStop(NamedTuple):
    """Positions in a list of evaluation losses."""

    best_index: int
    stopped_index: int


def early_stop(losses: ArrayLike, patience: int, min_delta: float) -> EarlyStop:
    """Where a run that watches these losses stops, and which of them it keeps.

    A loss is better if it is below the best so far by more than `min_delta`. The run stops at the
    `patience`-th loss in a row that is not; if that never comes, stopped_index is the last index.
    best_index need not be the lowest loss: small steps down do not count.

    As Keras's EarlyStopping(mode="min", restore_best_weights=True), also in that the first loss
    is the best where none counts. Different: -inf is never better, and a patience of 1 can stop
    at the first loss, if it is not finite.

    Args:
      losses: float[n], n >= 1, one for each evaluation, in order.
    Raises:
      ValueError: no losses, patience < 1 or min_delta < 0.
    Source: Goodfellow, Bengio and Courville 2016, "Deep learning", algorithm 7.1; `min_delta` is
    Keras's.
    """
    losses = np.asarray(losses, np.float64)
    if losses.ndim != 1 or losses.size == 0:
        raise ValueError(f"losses: expected a list of numbers, got shape {losses.shape}")
    if patience < 1:
        raise ValueError(f"patience={patience}: expected at least 1 evaluation")
    if not min_delta >= 0:
        raise ValueError(f"min_delta={min_delta}: expected 0 or more")
    best_index, best, waited = 0, math.inf, 0
    for index, loss in enumerate(losses.tolist()):
        if math.isfinite(loss) and loss + min_delta < best:
            best_index, best, waited = index, loss, 0
            continue
        waited += 1
        if waited == patience:
            return EarlyStop(best_index, index)
    return EarlyStop(best_index, len(losses) - 1)
