"""Settings compared by the rows of a study: which is best, by how much, what is claimed of several
of them at once, and lines with a band.

Here as in `jaxlm.analysis.statistics` a value that is not finite is never dropped.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED, Claim, all_of, judge
from jaxlm.analysis.statistics import Interval, brief, mean_interval, paired_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, interval_band

LEARNED = 0.05  # nats/token below the unigram distribution: less is nothing


def has_diverged(final_loss: float, unigram_loss: float) -> bool:
    """Whether a run ended with a loss that is not finite, or not below that of the unigram
    distribution by more than LEARNED: it knows nothing of the context.

    With AdamW a rate that is too high seldom ends in NaN; the model comes to rest near there.
    """
    return not final_loss < unigram_loss - LEARNED  # NaN is below nothing


def over_seeds(results: Results) -> str:
    """What the points and bands of a figure are, for its caption."""
    return f"means with 95% t intervals over {results.config['num_seeds']} seeds"


def lowest_mean(results: Results, *names: str) -> tuple[Any, ...]:
    """Of the values of these fields, those whose rows have the lowest mean; the first of equals.

    A mean that is not finite is above all others.
    """
    means = {key: float(np.mean(group.values())) for key, group in results.by(*names).items()}
    return min(means, key=lambda key: means[key] if math.isfinite(means[key]) else math.inf)


def by_seed(results: Results) -> dict[int, float]:
    """{seed: value} of rows of which each seed has one; a ValueError where one has two."""
    values = {row.seed: row.value for row in results.rows}
    if len(values) < len(results.rows):
        raise ValueError(f"{len(results.rows)} rows of {len(values)} seeds: expected one for each")
    return values


def difference(a: Results, b: Results) -> Interval:
    """t interval over seeds of the mean of a - b, paired by seed; both have one row for each."""
    a, b = by_seed(a), by_seed(b)
    if set(a) != set(b):
        raise ValueError(f"seeds {sorted(a)} against {sorted(b)}: expected the same")
    return paired_interval([a[seed] for seed in a], [b[seed] for seed in a], over="seeds")


def band(label: str, groups: Iterable[tuple[float, Results]], **look: Any) -> Band:
    """A line through (x, rows over seeds): their means with t intervals.

    look: more of what a `Band` has, such as dashed=.
    """
    groups = list(groups)
    intervals = [mean_interval(results.values()) for _, results in groups]
    return interval_band(label, [x for x, _ in groups], intervals, **look)


def band_by(label: str, results: Results, name: str, **look: Any) -> Band:
    """The `band` of rows by a field of theirs, or by "step"."""
    return band(label, ((x, group) for (x,), group in results.by(name).items()), **look)


def weigh_all(
    text: str,
    what: str,
    intervals: Mapping[str, Interval],
    *,
    above: float | None = None,
    below: float | None = None,
) -> Claim:
    """The claim that every one of the intervals is above (or below) a threshold.

    Args:
      what: the numbers are, with their unit: the evidence begins with it.
      intervals: of one kind, by name.
    """
    side = f"below {below:g}" if above is None else f"above {above:g}"
    verdicts = [judge(interval, above=above, below=below) for interval in intervals.values()]
    return Claim(text, all_of(verdicts), f"{what}. {_listed(intervals)}; claimed {side}")


def weigh_within(text: str, what: str, intervals: Mapping[str, Interval], most: float) -> Claim:
    """The claim that every one of the intervals is between -most and most; see `weigh_all`."""
    verdicts = [judge(interval, below=most) for interval in intervals.values()]
    verdicts += [judge(interval, above=-most) for interval in intervals.values()]
    return Claim(text, all_of(verdicts), f"{what}. {_listed(intervals)}; claimed within {most:g}")


def at_most(text: str, values: Sequence[float], most: float) -> Claim:
    """The claim that no value is above `most`; without an interval, of what is but rounding."""
    largest = float(np.max(values))  # NaN where one is
    verdict = SUPPORTED if largest <= most else NOT_SUPPORTED
    evidence = f"Largest of {len(values)}: {largest:.2g}; claimed at most {most:g}"
    return Claim(text, verdict, evidence)


def _listed(intervals: Mapping[str, Interval]) -> str:
    parts = [f"{name}: {brief(interval)}" for name, interval in intervals.items()]
    return f"{', '.join(parts)}; {next(iter(intervals.values())).kind}"
