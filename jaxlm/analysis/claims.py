"""What a study claims, and whether the measured interval bears it out.

A verdict is about every value that the interval leaves possible. All of them on the claimed side:
supported. None of them: not supported. Some: inconclusive. With two-sided 95% intervals, a false
claim about one number is called supported at most once in 40 studies. That is so where the number
of seeds was set beforehand: added to until a verdict comes out, it errs more often.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from jaxlm.analysis.statistics import Interval, numbers

Verdict = Literal["supported", "not supported", "inconclusive"]
SUPPORTED: Verdict = "supported"
NOT_SUPPORTED: Verdict = "not supported"
INCONCLUSIVE: Verdict = "inconclusive"

MAX_DIGITS = 17  # a float64 written with that many reads back as itself


class Claim(NamedTuple):
    """text: what is claimed, in a sentence. evidence: one line with the numbers."""

    text: str
    verdict: Verdict
    evidence: str


def weigh(
    text: str, interval: Interval, *, above: float | None = None, below: float | None = None
) -> Claim:
    """The claim `text`, that `interval` is above (or below) a threshold, judged and with evidence.

    Raises:
      ValueError: as `judge`.
    """
    return Claim(
        text=text,
        verdict=judge(interval, above=above, below=below),
        evidence=evidence(interval, above=above, below=below),
    )


def judge(interval: Interval, *, above: float | None = None, below: float | None = None) -> Verdict:
    """Whether the interval lies on the claimed side of a threshold; "above" is strictly above.

    supported: the whole interval is beyond the threshold.
    not supported: no point of it is; an interval that ends at the threshold is among these.
    inconclusive: some points are and some are not (above: low <= threshold < high); or there is
      no interval, because of one value only or of values that are not finite (nan bounds).

    Seeds that all agree give an interval of one point, which is judged by the same rule: 1.0 in
    every seed is above 0.99 and is not above 1.0.

    Raises:
      ValueError: neither or both of `above` and `below`, or a threshold that is not finite.
    """
    threshold = _threshold(above, below)
    if math.isnan(interval.low) or math.isnan(interval.high):
        return INCONCLUSIVE
    if below is None:
        all_beyond, none_beyond = interval.low > threshold, interval.high <= threshold
    else:
        all_beyond, none_beyond = interval.high < threshold, interval.low >= threshold
    if all_beyond:
        return SUPPORTED
    return NOT_SUPPORTED if none_beyond else INCONCLUSIVE


def evidence(interval: Interval, *, above: float | None = None, below: float | None = None) -> str:
    """ "0.84 [0.71, 0.97], 95% t interval over 5 seeds; claimed above 0.5".

    Digits are added until the numbers, as printed, bear out the verdict too.

    Raises:
      ValueError: as `judge`.
    """
    verdict = judge(interval, above=above, below=below)
    for digits in range(2, MAX_DIGITS + 1):
        mean, low, high = map(float, numbers(interval, digits))
        printed = interval._replace(mean=mean, low=low, high=high)
        if judge(printed, above=above, below=below) == verdict:
            break
    side = "below" if above is None else "above"
    return f"{interval.text(digits)}; claimed {side} {_threshold(above, below):.15g}"


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim with several parts, all of which have to hold.

    supported if every part is, not supported if any part is not, else inconclusive. A false
    claim passes no more often than its false part alone would; "not supported" has no such
    bound and grows likelier with the number of parts.

    Raises:
      ValueError: no verdicts, or a word that is none.
    Source: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling".
    """
    verdicts = list(verdicts)
    unknown = [v for v in verdicts if v not in (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE)]
    if unknown or not verdicts:
        raise ValueError(
            f"verdicts={verdicts}: expected one or more of {SUPPORTED!r}, {NOT_SUPPORTED!r},"
            f" {INCONCLUSIVE!r}"
        )
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return INCONCLUSIVE if INCONCLUSIVE in verdicts else SUPPORTED


def _threshold(above: float | None, below: float | None) -> float:
    if (above is None) == (below is None):
        raise ValueError(f"above={above}, below={below}: a claim needs exactly one of the two")
    threshold = float(next(x for x in (above, below) if x is not None))
    if not math.isfinite(threshold):
        side = "above" if below is None else "below"
        raise ValueError(f"{side}={threshold}: expected a finite number")
    return threshold
