"""Settings compared by the rows of a study: which is best, by how much, and as a line with a band.

Here as in `jaxlm.analysis.statistics` a value that is not finite is never dropped.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxlm.analysis.statistics import Interval, mean_interval, paired_interval
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
