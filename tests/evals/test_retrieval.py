"""Ranked lists: scikit-learn's numbers where it has them, and by hand."""

import numpy as np
import pytest
from sklearn import metrics

from jaxlm.evals import curves
from jaxlm.evals.retrieval import (
    mean_average_precision,
    mean_reciprocal_rank,
    ndcg,
    precision_at_k,
)

SCORES = np.arange(8, 0, -1.0)  # of the places, so that scikit-learn ranks as we are given


def draw(seed, num_queries=5):
    return np.random.default_rng(seed).integers(0, 4, (num_queries, len(SCORES)))


@pytest.mark.parametrize("k", [None, 1, 3, 8, 20])
def test_ndcg_is_scikit_learns(k):
    graded = draw(0)
    graded[2] = 0  # nothing relevant
    want = metrics.ndcg_score(graded, np.tile(SCORES, (len(graded), 1)), k=k)
    assert ndcg(graded, k) == pytest.approx(want, rel=1e-12)


def test_average_precision_is_scikit_learns_and_that_of_curves():
    graded = draw(1)
    relevant = graded > 0
    want = [metrics.average_precision_score(row, SCORES) for row in relevant]
    assert mean_average_precision(graded) == pytest.approx(np.mean(want), rel=1e-12)
    one = curves.average_precision(relevant[0], SCORES)
    assert mean_average_precision(graded[:1]) == pytest.approx(one, rel=1e-12)


def test_by_hand():
    rankings = [[0, 1, 0, 1], [1, 0], [0, 0, 0]]  # of different lengths
    assert mean_reciprocal_rank(rankings) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert mean_average_precision(rankings) == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1 + 0) / 3)
    # The first was cut off: one more is relevant somewhere below.
    cut = mean_average_precision(rankings, [3, 1, 0])
    assert cut == pytest.approx(((1 / 2 + 2 / 4) / 3 + 1 + 0) / 3)
    assert precision_at_k(rankings, 1) == pytest.approx(1 / 3)
    assert precision_at_k(rankings, 4) == pytest.approx((2 / 4 + 1 / 4) / 3)
    # 3 then 2 the wrong way round: (2 + 3 / log2 3) / (3 + 2 / log2 3)
    assert ndcg([[2, 3]]) == pytest.approx((2 + 3 / np.log2(3)) / (3 + 2 / np.log2(3)))


@pytest.mark.parametrize("measure", [mean_reciprocal_rank, mean_average_precision, ndcg])
def test_the_best_order_is_worth_1_and_what_follows_it_nothing(measure):
    assert measure([[1, 1, 0, 0], [1, 0]]) == 1
    assert measure([[0, 1]]) < 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_reciprocal_rank([]), "rankings: expected at least one"),
        (lambda: ndcg([[1], []]), r"rankings\[1\]: expected a list of one or more"),
        (lambda: ndcg([[1, -1]]), r"rankings\[0\]: expected relevance of 0 or more"),
        (lambda: ndcg([[1]], 0), "k=0"),
        (lambda: precision_at_k([[1]], 0), "k=0"),
        (lambda: mean_average_precision([[1, 1]], [1]), r"num_relevant\[0\]=1: .* 2 relevant"),
        (lambda: mean_average_precision([[1]], [1, 1]), "rankings has 1, num_relevant has 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
