"""Early stopping by hand, and as Keras's callback."""

import math

import numpy as np
import pytest

from jaxlm.analysis.early_stopping import early_stop

NAN, INF = math.nan, math.inf


def keras_early_stopping(losses, patience, min_delta):
    """Keras's callback by its rules, weights left out; a loss of -inf would count here."""
    best, best_epoch, wait = INF, 0, 0
    for epoch, current in enumerate(losses):
        wait += 1
        if current - (-min_delta) < best:
            best, best_epoch, wait = current, epoch, 0
        elif wait >= patience and epoch > 0:
            return best_epoch, epoch
    return best_epoch, len(losses) - 1


def test_early_stop_by_hand():
    #         best   0.0005 better: no    no   third: stop   (never seen)
    losses = [2.0, 1.5, 1.4995, 1.6, 1.4992, 0.1]
    assert early_stop(losses, patience=3, min_delta=0.001) == (1, 4)
    assert early_stop(losses, patience=4, min_delta=0.001) == (5, 5)
    assert early_stop(losses, patience=3, min_delta=0.0) == (5, 5)
    assert early_stop([1.0, 0.5, 0.5], patience=1, min_delta=0.0) == (1, 2)  # equal: not better
    assert early_stop([1.0, 0.5], patience=1, min_delta=0.5) == (0, 1)  # by exactly min_delta: no


def test_early_stop_is_keras():
    rng = np.random.default_rng(6)
    stopped = 0
    for _ in range(500):
        losses = rng.choice([0.5, 0.75, 1.0, 1.25, 1.5, NAN, INF], size=12)
        losses[0] = 2.0
        patience, min_delta = int(rng.integers(1, 5)), float(rng.choice([0.0, 0.25, 0.3]))
        got = early_stop(losses, patience, min_delta)
        assert got == keras_early_stopping(losses.tolist(), patience, min_delta)
        stopped += got.stopped_index < 11
    assert 100 < stopped < 500


def test_early_stop_never_keeps_a_loss_that_is_not_finite():
    assert early_stop([2.0, -INF, 1.0, NAN, INF], patience=2, min_delta=0.0) == (2, 4)
    assert early_stop([NAN, 3.0, NAN, NAN], patience=2, min_delta=0.0) == (1, 3)
    assert early_stop([NAN, INF, NAN], patience=2, min_delta=0.0) == (0, 1)  # none: the first


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], 1, 0), "losses: expected"),
        (([1], 0, 0), "patience=0"),
        (([1], 1, -0.1), "min_delta=-0.1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        early_stop(*arguments)
