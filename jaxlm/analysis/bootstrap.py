"""Intervals of any measure of a sample, by drawing the sample again from itself."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.analysis.statistics import Interval


def bootstrap_interval(
    measure: Callable[..., float],
    *columns: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 999,
    seed: int = 0,
    over: str = "examples",
) -> Interval:
    """BCa bootstrap interval of `measure(*columns)`, where a row of the columns is an example.

    It says how far the measure depends on which examples were drawn, for one trained model; over
    what training makes of a seed, see `mean_interval`. The examples are to be independent. It is a
    function of its arguments: the same seed, the same interval.

    Args:
      measure: such as `jaxlm.evals.curves.roc_auc`; it is called num_resamples times, and once
        more for each example left out.
      columns: [n] each, n >= 2; rows are drawn together.
      over: what a row is, as a plural in s; only for the words.
    Returns:
      low and high are nan, as in `mean_interval`, where the measure is not finite in some of the
      samples drawn; where it is the same in all, they are that value.
    Raises:
      ValueError: columns of different lengths or of fewer than 2, a confidence outside (0, 1), or
        what the measure raises, for instance of a sample without a positive.
    Source: Efron 1987, "Better bootstrap confidence intervals".
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    arrays = tuple(map(np.asarray, columns))
    sizes = {len(column) for column in arrays}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(f"columns of lengths {sorted(sizes)}: expected one length of 2 or more")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, as 0.95")
    mean, num = float(measure(*arrays)), len(arrays[0])
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # all alike or not finite: see below
        found = bootstrap(
            arrays,
            measure,
            paired=True,
            vectorized=False,
            confidence_level=confidence,
            n_resamples=num_resamples,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    drawn = found.bootstrap_distribution
    kind = f"{100 * confidence:.6g}% bootstrap interval over {num} {over}"
    if not np.isfinite(drawn).all():
        kind = f"no interval: not finite in some samples of {num} {over}"
        return Interval(mean, np.nan, np.nan, num, confidence, kind)
    if (drawn == drawn[0]).all():
        return Interval(mean, mean, mean, num, confidence, kind)
    low, high = map(float, found.confidence_interval)
    return Interval(mean, low, high, num, confidence, kind)
