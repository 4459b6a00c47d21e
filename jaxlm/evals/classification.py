"""How well classes are predicted: accuracy, and precision, recall and F1 by class and averaged.

A ratio of nothing to nothing is 0: the precision of a class that is never predicted, the recall of
one that does not occur. So a class that is never found lowers every average, and none is nan.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.evals import inputs


class Scores(NamedTuple):
    """Precision TP / (TP + FP), recall TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN)."""

    precision: float
    recall: float
    f1: float


class ClassScores(NamedTuple):
    """The same for each class, f64[C], and how often each occurs, i64[C]."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """The share of predictions that are right.

    Args:
      labels, predicted: int[n] classes, n >= 1.
    Raises:
      ValueError: no values, different lengths, or values that are no classes.
    """
    labels = inputs.class_ids(labels, "labels")
    predicted = inputs.class_ids(predicted, "predicted")
    inputs.check_lengths(labels=labels, predicted=predicted)
    return float(np.mean(labels == predicted))


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> np.ndarray:
    """i64[C, C]: how often class `row` was predicted to be class `column`.

    Args:
      labels, predicted: int[n] from 0 to num_classes - 1, n >= 1.
    Raises:
      ValueError: no values, different lengths, or a class out of range.
    """
    labels = inputs.class_ids(labels, "labels", num_classes)
    predicted = inputs.class_ids(predicted, "predicted", num_classes)
    inputs.check_lengths(labels=labels, predicted=predicted)
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_scores(confusion: ArrayLike) -> ClassScores:
    """Precision, recall and F1 of each class, from a `confusion_matrix`."""
    right, missed, wrongly = _counts(confusion)
    return ClassScores(
        precision=_ratio(right, right + wrongly),
        recall=_ratio(right, right + missed),
        f1=_ratio(2 * right, 2 * right + missed + wrongly),
        support=right + missed,
    )


def macro_average(confusion: ArrayLike) -> Scores:
    """The plain mean over all classes, those that do not occur included.

    Its F1 is the mean of the classes' F1, not the harmonic mean of the other two.
    """
    precision, recall, f1, _ = class_scores(confusion)
    return Scores(*(float(np.mean(values)) for values in (precision, recall, f1)))


def micro_average(confusion: ArrayLike, classes: Sequence[int] | None = None) -> Scores:
    """Precision, recall and F1 of the counts added up over `classes`; None: over all.

    Over all classes the three are equal, and equal to the accuracy. Leave out the class that stands
    for "nothing found" where there is one.

    Raises:
      ValueError: a class out of range.
    """
    counts = _counts(confusion)
    if classes is not None:
        chosen = inputs.class_ids(classes, "classes", len(counts[0]))
        counts = [count[np.unique(chosen)] for count in counts]
    right, missed, wrongly = (count.sum() for count in counts)
    return Scores(
        precision=float(_ratio(right, right + wrongly)),
        recall=float(_ratio(right, right + missed)),
        f1=float(_ratio(2 * right, 2 * right + missed + wrongly)),
    )


def _counts(confusion: ArrayLike) -> list[np.ndarray]:
    """Of each class i64[C]: found, missed, and said of another."""
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or len(set(confusion.shape)) > 1 or confusion.size == 0:
        raise ValueError(f"confusion: expected a square of counts, got shape {confusion.shape}")
    right = np.diagonal(confusion)
    return [right, confusion.sum(1) - right, confusion.sum(0) - right]


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    return np.where(np.equal(whole, 0), 0.0, part / np.maximum(whole, 1))
