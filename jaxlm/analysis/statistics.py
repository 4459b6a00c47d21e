"""Intervals, slopes and scales that a study reports, in float64; numpy in, plain floats out.

A value that is not finite is never dropped: a mean over runs of which one diverged is nan or inf
and has no interval, and the words beside it say so.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FIXED_POINT = (1e-3, 1e6)  # sizes printed without an exponent
DOUBLE_DIGITS = 17  # significant digits after which a float64 reads back as itself


class Interval(NamedTuple):
    """An estimate with its two-sided confidence interval.

    mean: the estimate: a mean, proportion, ratio or slope.
    low, high: both nan where there is no interval.
    num: how many values went in, those that are not finite included.
    confidence: such as 0.95.
    kind: the words a report prints after the numbers: "95% t interval over 5 seeds", or
      "no interval over 1 seed".
    """

    mean: float
    low: float
    high: float
    num: int
    confidence: float
    kind: str

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        """ "0.84 [0.71, 0.97], 95% t interval over 5 seeds"; see `numbers` for `digits`."""
        mean, low, high = numbers(self, digits)
        if math.isnan(self.low):
            return f"{mean}, {self.kind}"
        return f"{mean} [{low}, {high}], {self.kind}"


class LineFit(NamedTuple):
    """A least-squares line; r2 is the share of the variance of y that it accounts for."""

    slope: Interval
    intercept: float
    r2: float


def mean_interval(values: ArrayLike, confidence: float = 0.95, *, over: str = "seeds") -> Interval:
    """Student t interval of the mean: mean +- t(n - 1) * s / sqrt(n), s with n - 1 below.

    It assumes independent values from one distribution that is near normal. One value has no
    interval. If a value is nan or inf, the mean is nan or inf and there is no interval either.
    Values that are all equal give that value exactly, with no width.

    Args:
      values: float[n], n >= 1.
      over: what one value stands for, as a plural in s; only for the words.
    Raises:
      ValueError: no values, or a confidence outside (0, 1).
    Source: Student 1908, "The probable error of a mean".
    """
    values = _vector(values, "values")
    num = len(values)
    mean, deviations = _centre(values)
    missing = _why_no_interval(values, over, least=2)
    if missing:
        return _without_interval(mean, num, confidence, missing)
    stderr = math.sqrt(float(deviations @ deviations) / (num - 1) / num)
    kind = f"{_percent(confidence)} t interval over {num} {over}"
    return _t_interval(mean, stderr, num - 1, num, confidence, kind)


def proportion_interval(
    successes: int, num: int, confidence: float = 0.95, *, over: str = "trials"
) -> Interval:
    """Clopper-Pearson interval of a probability from `successes` in `num` independent trials.

    The bounds are the p at which a result as extreme has a chance of (1 - confidence) / 2:
    quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k). At 0 and n the closed form is
    [0, 1 - a^(1/n)] and [a^(1/n), 1], with a = (1 - confidence) / 2.

    Why not Wilson's shorter interval: studies report "all of them" and "none of them", and there
    Wilson's 95% covers as little as 83%. This one never covers less than it says.

    Args:
      over: what one trial is, as a plural in s; trials that share a trained model are not
        independent, so a share of correct sequences in each seed belongs in `mean_interval`.
    Raises:
      ValueError: successes is not a whole number from 0 to num, num < 1, or a confidence outside
        (0, 1).
    Source: Clopper and Pearson 1934; Brown, Cai and DasGupta 2001, "Interval estimation for a
    binomial proportion", for coverage near 0 and 1.
    """
    from scipy.special import betaincinv

    percent = _percent(confidence)
    if not (num >= 1 and 0 <= successes <= num and successes == int(successes)):
        raise ValueError(f"successes={successes} of num={num}: expected a count from 0 to num >= 1")
    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, num - successes + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, num - successes, 1 - tail)) if successes < num else 1.0
    kind = f"{percent} Clopper-Pearson interval over {_count(num, over)}"
    return Interval(float(successes / num), low, high, num, confidence, kind)


def paired_interval(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, *, over: str = "pairs"
) -> Interval:
    """t interval of mean(a - b), where a[i] and b[i] belong together (one seed, two settings).

    What a pair shares, such as its initial weights and its batches, cancels in the difference.

    Args:
      a, b: float[n] of one length; values that are not finite as in `mean_interval`.
    Raises:
      ValueError: different lengths, no values, or a confidence outside (0, 1).
    """
    a, b = _pairs(a, b, "a", "b")
    with np.errstate(invalid="ignore"):  # inf - inf
        return mean_interval(a - b, confidence, over=over)


def ratio_interval(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, *, over: str = "pairs"
) -> Interval:
    """Interval of the geometric mean of a / b: exp of the t interval of mean(log(a / b)).

    Symmetric in what it compares: swapping a and b inverts the three numbers. A value that is
    not finite makes the ratio 0, inf or nan, without an interval.

    Args:
      a, b: float[n] of one length, all above zero; a[i] and b[i] belong together.
    Raises:
      ValueError: a value of zero or below, different lengths, no values, or a confidence
        outside (0, 1).
    """
    a, b = _pairs(a, b, "a", "b")
    for name, values in (("a", a), ("b", b)):
        if np.any(values <= 0):
            at = int(np.argmax(values <= 0))
            raise ValueError(f"{name}[{at}]={values[at]}: a ratio needs values above zero")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        logs = mean_interval(np.log(a / b), confidence, over=over)
        mean, low, high = (float(np.exp(v)) for v in (logs.mean, logs.low, logs.high))
    kind = logs.kind.replace("t interval", "t interval of the log ratio")
    return logs._replace(mean=mean, low=low, high=high, kind=kind)


def slope_interval(
    x: ArrayLike, y: ArrayLike, confidence: float = 0.95, *, over: str = "points"
) -> LineFit:
    """Least-squares line y = intercept + slope * x; slope +- t(n - 2) * stderr.

    stderr = sqrt(SSE / (n - 2) / Sxx). It assumes errors that are independent from point to
    point, which the layers of one network are not: for those, see `mean_slope_interval`.
    Two points have a slope and no interval. Where y is constant, r2 is nan. A y that is not
    finite makes all estimates nan.

    Args:
      x, y: float[n] of one length, n >= 2; x finite and not all equal.
    Raises:
      ValueError: an x as above does not allow, different lengths, or a confidence outside (0, 1).
    Source: Draper and Smith 1998, "Applied regression analysis", chapter 1.
    """
    x, y = _pairs(x, y, "x", "y")
    num, percent = len(x), _percent(confidence)
    line = _least_squares(x, y)
    missing = _why_no_interval(y, over, least=3)
    if missing:
        slope = _without_interval(line.slope, num, confidence, missing)
    else:
        kind = f"{percent} t interval of a line through {num} {over}"
        slope = _t_interval(line.slope, line.stderr, num - 2, num, confidence, kind)
    return LineFit(slope, line.intercept, line.r2)


def mean_slope_interval(
    x: ArrayLike, ys: ArrayLike, confidence: float = 0.95, *, over: str = "seeds"
) -> Interval:
    """Fits one line to each row of `ys`; the t interval of the mean of the slopes.

    The repetitions are independent where the points along x are not (log-norms of layers).

    Args:
      x: float[n], n >= 2, finite and not all equal.
      ys: float[num_repetitions, n]; a row that is not finite makes the mean nan.
    Raises:
      ValueError: shapes that do not fit, such an x, or a confidence outside (0, 1).
    """
    rows = np.asarray(ys, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"ys: expected [repetitions, points], got an array of shape {rows.shape}")
    slopes = [_least_squares(*_pairs(x, row, "x", "a row of ys")).slope for row in rows]
    return mean_interval(slopes, confidence, over=over)


def numbers(interval: Interval, digits: int = 2) -> tuple[str, str, str]:
    """mean, low and high as text, to as many decimals as show `digits` digits of the width.

    With no width there is only the size to go by: two digits more of that.
    """
    size = max((abs(v) for v in interval[:3] if math.isfinite(v)), default=0.0)
    width = interval.high - interval.low
    exponent = _exponent(size)
    if 0 < width < math.inf:
        decimals = digits - 1 - _exponent(width)
    else:
        decimals = digits + 1 - exponent
    decimals = min(decimals, DOUBLE_DIGITS - 1 - exponent)
    if size == 0 or FIXED_POINT[0] <= size < FIXED_POINT[1]:
        form = f"z.{max(decimals, 0)}f"
    else:
        form = f"z.{max(decimals + exponent, 0)}e"
    mean, low, high = (format(float(v), form) for v in interval[:3])
    return mean, low, high


def brief(interval: Interval) -> str:
    """ "2.40 [2.38, 2.42]", or the mean alone where there is no interval; for cells of tables."""
    mean, low, high = numbers(interval)
    return mean if math.isnan(interval.low) else f"{mean} [{low}, {high}]"


class _Line(NamedTuple):
    slope: float
    intercept: float
    r2: float
    stderr: float  # of the slope; nan with fewer than three points


def _least_squares(x: np.ndarray, y: np.ndarray) -> _Line:
    if not np.all(np.isfinite(x)) or np.all(x == x[0]):
        raise ValueError(f"x={x.tolist()}: a slope needs finite values that are not all equal")
    if not np.all(np.isfinite(y)):
        return _Line(math.nan, math.nan, math.nan, math.nan)
    (x_mean, dx), (y_mean, dy) = _centre(x), _centre(y)
    sxx, syy = float(dx @ dx), float(dy @ dy)
    slope = float(dx @ dy) / sxx
    residuals = dy - slope * dx
    sse, dof = float(residuals @ residuals), len(x) - 2
    return _Line(
        slope=slope,
        intercept=y_mean - slope * x_mean,
        r2=1 - sse / syy if syy > 0 else math.nan,
        stderr=math.sqrt(sse / dof / sxx) if dof > 0 else math.nan,
    )


def _centre(values: np.ndarray) -> tuple[float, np.ndarray]:
    """(mean, values - mean), the mean taken about the first value: exact if all are equal."""
    if not np.all(np.isfinite(values)):
        with np.errstate(invalid="ignore"):  # inf - inf
            return float(np.mean(values)), np.full_like(values, math.nan)
    shifted = values - values[0]
    shift = shifted.mean()
    return float(values[0] + shift), shifted - shift


def _t_interval(
    mean: float, stderr: float, dof: int, num: int, confidence: float, kind: str
) -> Interval:
    from scipy.special import stdtrit

    half = float(stdtrit(dof, 0.5 + confidence / 2)) * stderr
    return Interval(mean, mean - half, mean + half, num, confidence, kind)


def _without_interval(mean: float, num: int, confidence: float, why: str) -> Interval:
    _percent(confidence)
    return Interval(mean, math.nan, math.nan, num, confidence, why)


def _why_no_interval(values: np.ndarray, over: str, least: int) -> str:
    """An empty string where the values allow an interval."""
    num, lost = len(values), int(np.sum(~np.isfinite(values)))
    if lost:
        return f"no interval: not finite in {lost} of {_count(num, over)}"
    return f"no interval over {_count(num, over)}" if num < least else ""


def _count(num: int, over: str) -> str:
    return f"{num} {over.removesuffix('s') if num == 1 else over}"


def _percent(confidence: float) -> str:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1, as 0.95")
    return f"{100 * confidence:.6g}%"


def _exponent(size: float) -> int:
    return math.floor(math.log10(size)) if size > 0 else 0


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected a list of numbers, got shape {vector.shape}")
    return vector


def _pairs(a: ArrayLike, b: ArrayLike, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
    a, b = _vector(a, name_a), _vector(b, name_b)
    if len(a) != len(b):
        raise ValueError(f"{name_a} has {len(a)} values and {name_b} has {len(b)}: expected pairs")
    return a, b
