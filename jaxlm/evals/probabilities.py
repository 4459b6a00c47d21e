"""What predicted probabilities are worth: calibration, and the distance of distributions."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.evals import inputs


class Reliability(NamedTuple):
    """Of each bin: f64[M] mean confidence and share right, nan in an empty one; i64[M] counts."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability(confidence: ArrayLike, right: ArrayLike, num_bins: int = 15) -> Reliability:
    """How often predictions of each confidence are right.

    The bins are equally wide: ((i - 1) / M, i / M], the first with 0 as well.

    Args:
      confidence: float[n] from 0 to 1, the probability given to the class that was predicted.
      right: bool[n], whether it was the class.
    Raises:
      ValueError: no values, different lengths, a confidence outside [0, 1], num_bins < 1.
    Source: Guo et al. 2017, "On calibration of modern neural networks", section 2.
    """
    confidence, right = inputs.numbers(confidence, "confidence"), inputs.binary(right, "right")
    inputs.check_lengths(confidence=confidence, right=right)
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: expected at least 1")
    outside = (confidence < 0) | (confidence > 1)
    if outside.any():
        at = int(np.argmax(outside))
        raise ValueError(f"confidence[{at}]={confidence[at]}: expected a number from 0 to 1")
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.searchsorted(inner_edges, confidence)
    count = np.bincount(bins, minlength=num_bins)
    confident, correct = (
        np.bincount(bins, values, minlength=num_bins) for values in (confidence, right)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(confident / count, correct / count, count)


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, num_bins: int = 15
) -> float:
    """Mean over examples of |share right - mean confidence| of their bin; see `reliability`.

    It depends on the bins: compare values of one `num_bins` and about equally many examples. With
    few examples a bin it is above 0 even for a calibrated model.
    """
    of_bins = reliability(confidence, right, num_bins)
    gaps = np.abs(of_bins.accuracy - of_bins.confidence)
    return float(np.nansum(gaps * of_bins.count) / of_bins.count.sum())


def kl_divergence(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    """KL(p || q) = sum p log(p / q) over the last axis, in nats: f64[...].

    A p of 0 adds nothing; a q of 0 where p is not gives inf.

    Args:
      p, q: float[..., C] of one shape, probabilities.
    Raises:
      ValueError: different shapes, or rows that are no distributions.
    """
    p, q = inputs.distributions(p, "p"), inputs.distributions(q, "q")
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q {q.shape}: expected the same")
    from scipy.special import rel_entr

    return np.sum(rel_entr(p, q), axis=-1)
