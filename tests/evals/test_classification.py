"""Classes predicted: scikit-learn's numbers, and counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from jaxlm.evals.classification import (
    accuracy,
    class_scores,
    confusion_matrix,
    macro_average,
    micro_average,
)

C = 5  # class 3 never occurs and class 4 is never predicted


def draw(seed, num=60):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 4], size=num, p=[0.6, 0.2, 0.15, 0.05])
    guess = rng.choice([0, 1, 2, 3], size=num)
    return labels, np.where((rng.random(num) < 0.6) & (labels < 4), labels, guess)


@pytest.mark.parametrize("seed", range(4))
def test_all_of_them_are_scikit_learns(seed):
    labels, predicted = draw(seed)
    assert accuracy(labels, predicted) == metrics.accuracy_score(labels, predicted)
    confusion = confusion_matrix(labels, predicted, C)
    every = list(range(C))
    np.testing.assert_array_equal(
        confusion, metrics.confusion_matrix(labels, predicted, labels=every)
    )

    def theirs(average, classes=None):
        return metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes or every, average=average, zero_division=0
        )

    found = class_scores(confusion)
    for ours, want in zip(found, theirs(None), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-15)
    assert found.precision[4] == found.recall[3] == found.f1[3] == 0
    np.testing.assert_allclose(macro_average(confusion), theirs("macro")[:3], rtol=1e-15)
    np.testing.assert_allclose(micro_average(confusion), theirs("micro")[:3], rtol=1e-15)
    some = [1, 4]
    np.testing.assert_allclose(
        micro_average(confusion, some), theirs("micro", some)[:3], rtol=1e-15
    )


def test_by_hand():
    """Of class 0: two found, one missed, one said of another. Of class 1: none of one found."""
    labels, predicted = [0, 0, 0, 1], [0, 0, 1, 0]
    confusion = confusion_matrix(labels, predicted, 2)
    np.testing.assert_array_equal(confusion, [[2, 1], [1, 0]])
    precision, recall, f1, support = class_scores(confusion)
    np.testing.assert_allclose(precision, [2 / 3, 0])
    np.testing.assert_allclose(recall, [2 / 3, 0])
    np.testing.assert_allclose(f1, [4 / 6, 0])
    np.testing.assert_array_equal(support, [3, 1])
    assert micro_average(confusion) == (0.5, 0.5, 0.5)


def test_arrays_of_a_device_will_do():
    assert accuracy(jnp.array([0, 1]), jnp.array([0, 0])) == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: accuracy([], []), "labels: expected a list of one or more"),
        (lambda: accuracy([0, 1], [0]), "labels has 2, predicted has 1: expected equal lengths"),
        (lambda: accuracy([0.5], [0]), r"labels\[0\]=0.5: expected a class from 0"),
        (lambda: confusion_matrix([0, 3], [0, 0], 3), r"labels\[1\]=3: .* from 0 to 2"),
        (lambda: confusion_matrix([0], [-1], 3), r"predicted\[0\]=-1"),
        (lambda: class_scores([[1, 2]]), r"expected a square of counts, got shape \(1, 2\)"),
        (lambda: micro_average([[1, 0], [0, 1]], [2]), r"classes\[0\]=2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
