"""Two classes told apart by a score: ROC and precision-recall curves and the areas under them.

Examples of one score are accepted together, so neither a curve nor an area depends on their order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.evals import inputs


class RocCurve(NamedTuple):
    """f64[T + 1] each, a point for every threshold, falling; before them (0, 0) at inf."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


class PrecisionRecallCurve(NamedTuple):
    """f64[T] each, a point for every threshold, falling, so that recall rises to 1.

    There is no point at recall 0: with nothing accepted there is no precision.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """What share of the negatives, and of the positives, scores at least each threshold.

    Args:
      labels: bool[n] or int[n] of 0 and 1, of each at least one.
      scores: float[n]; a higher one speaks for 1.
    Raises:
      ValueError: a class that does not occur, different lengths, a score that is not finite.
    Source: Fawcett 2006, "An introduction to ROC analysis", algorithm 1.
    """
    positives, negatives, thresholds = _accepted(labels, scores, both=True)
    return RocCurve(
        np.append(0.0, negatives / negatives[-1]),
        np.append(0.0, positives / positives[-1]),
        np.append(np.inf, thresholds),
    )


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties counting half.

    It is the area under `roc_curve`, whose arguments and errors it has.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    false, true, _ = roc_curve(labels, scores)
    return float(np.trapezoid(true, false))


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> PrecisionRecallCurve:
    """Precision and recall when everything that scores at least a threshold is accepted.

    Args:
      labels: bool[n] or int[n] of 0 and 1, with at least one 1.
      scores: float[n]; a higher one speaks for 1.
    Raises:
      ValueError: no positive, different lengths, a score that is not finite.
    """
    positives, negatives, thresholds = _accepted(labels, scores)
    precision = positives / (positives + negatives)
    return PrecisionRecallCurve(precision, positives / positives[-1], thresholds)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Sum of precision times the step in recall: the area of steps under the curve.

    Not by trapezoids, because a straight line between two points of this curve promises more than
    any mixture of the two thresholds gives. Arguments and errors of `precision_recall_curve`.

    Source: Davis and Goadrich 2006, "The relationship between precision-recall and ROC curves".
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _accepted(
    labels: ArrayLike, scores: ArrayLike, both: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives and negatives at or above each different score, and the scores, falling."""
    labels, scores = inputs.binary(labels, "labels"), inputs.numbers(scores, "scores")
    inputs.check_lengths(labels=labels, scores=scores)
    if not labels.any() or (both and labels.all()):
        raise ValueError(f"labels: all {len(labels)} are {int(labels[0])}, expected both classes")
    order = np.argsort(-scores, kind="stable")
    ordered, falling = labels[order], scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of each score
    positives = np.cumsum(ordered)[last]
    return positives, last + 1 - positives, falling[last]
