"""Bootstrap intervals: scipy's, their coverage, and where there is none."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxlm.analysis.bootstrap import bootstrap_interval


def right(labels, predicted):
    return np.mean(labels == predicted)


def test_rows_are_drawn_together_and_the_seed_decides():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    predicted = np.where(rng.random(80) < 0.8, labels, 1 - labels)
    got = bootstrap_interval(right, labels, predicted)
    assert got.mean == right(labels, predicted)
    # As of the one column of what was right: pairs were not broken, or half would be.
    alone = bootstrap_interval(np.mean, labels == predicted)
    assert got[:3] == alone[:3]
    want = stats.binomtest(int(np.sum(labels == predicted)), 80).proportion_ci(method="wilson")
    np.testing.assert_allclose(got[1:3], [want.low, want.high], atol=0.03)
    assert got == bootstrap_interval(right, labels, predicted)
    assert got[1:3] != bootstrap_interval(right, labels, predicted, seed=1)[1:3]
    assert got.kind == "95% bootstrap interval over 80 examples"


def test_it_covers_about_as_often_as_it_says():
    draws = np.random.default_rng(1).exponential(size=(200, 40))
    intervals = [bootstrap_interval(np.mean, x, num_resamples=199) for x in draws]
    hits = np.mean([i.low <= 1 <= i.high for i in intervals])
    assert 0.88 <= hits <= 0.98  # four standard errors below 0.95 are 0.89


def test_what_never_changes_has_no_width_and_what_is_lost_no_interval():
    assert bootstrap_interval(right, np.ones(9), np.ones(9))[:3] == (1, 1, 1)
    lost = bootstrap_interval(lambda x: math.nan if x.max() < 3 else 1.0, np.array([1, 2, 3]))
    assert lost.mean == 1 and math.isnan(lost.low) and math.isnan(lost.high)
    assert lost.kind == "no interval: not finite in some samples of 3 examples"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_interval(np.mean, [1.0]), "expected one length of 2 or more"),
        (lambda: bootstrap_interval(right, [1, 2], [1, 2, 3]), r"columns of lengths \[2, 3\]"),
        (lambda: bootstrap_interval(np.mean, [1, 2], confidence=95), "confidence=95"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
