"""Scores of two classes: scikit-learn's curves, and areas by counting pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from jaxlm.evals.curves import (
    average_precision,
    precision_recall_curve,
    roc_auc,
    roc_curve,
)


def draw(seed, num, num_scores):
    """Few different scores, so that many examples are tied."""
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, num - 2))
    return labels, (rng.integers(0, num_scores, num) + 0.5 * labels) / 7


CASES = [draw(0, 40, 4), draw(1, 40, 1000), draw(2, 7, 1), draw(3, 2, 2)]


@pytest.mark.parametrize("labels, scores", CASES)
def test_curves_and_areas_are_scikit_learns(labels, scores):
    want = metrics.roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(roc_curve(labels, scores), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)
    np.testing.assert_allclose(roc_auc(labels, scores), metrics.roc_auc_score(labels, scores))
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    assert (precision[-1], recall[-1]) == (1, 0)  # the point that ours leaves out
    got = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(got.precision, precision[-2::-1], rtol=1e-15)
    np.testing.assert_allclose(got.recall, recall[-2::-1], rtol=1e-15)
    np.testing.assert_array_equal(got.thresholds, thresholds[::-1])
    np.testing.assert_allclose(
        average_precision(labels, scores), metrics.average_precision_score(labels, scores)
    )


examples = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=12).filter(
    lambda drawn: len({label for label, _ in drawn}) == 2
)


@given(examples, st.randoms())
def test_auc_counts_pairs_and_no_order_matters(drawn, random):
    labels, scores = zip(*drawn, strict=True)
    pairs = [
        (a > b) + 0.5 * (a == b)
        for (up, a), (down, b) in itertools.product(drawn, drawn)
        if up and not down
    ]
    area = roc_auc(labels, scores)
    assert area == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc_auc(np.logical_not(labels), scores) == pytest.approx(1 - area, abs=1e-12)
    turned = list(drawn)
    random.shuffle(turned)
    again = zip(*turned, strict=True)
    assert average_precision(*again) == pytest.approx(average_precision(labels, scores), abs=1e-12)


def test_a_rising_curve_of_average_precision_by_hand():
    """1 0 1 from the top: precision 1 at recall 1/2, then 2/3 at recall 1."""
    assert average_precision([1, 0, 1], [3, 2, 1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: roc_curve([], []), "labels: expected a list of one or more"),
        (lambda: roc_auc([1, 1], [0.1, 0.2]), "all 2 are 1, expected both classes"),
        (lambda: roc_auc([0, 0], [0.1, 0.2]), "all 2 are 0, expected both classes"),
        (lambda: average_precision([0], [0.1]), "all 1 are 0"),
        (lambda: roc_auc([0, 2], [0.1, 0.2]), r"labels\[1\]=2: expected a class from 0 to 1"),
        (lambda: roc_auc([0, 1], [0.1, np.nan]), r"scores\[1\]=nan"),
        (lambda: roc_auc([0, 1], [0.1]), "labels has 2, scores has 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_precision_and_recall_without_a_negative():
    assert average_precision([1, 1], [0.5, 0.2]) == 1
