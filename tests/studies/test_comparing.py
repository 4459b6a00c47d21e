"""Settings compared by rows: against scipy's paired t test and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.comparing import (
    at_most,
    band,
    band_by,
    by_seed,
    difference,
    has_diverged,
    lowest_mean,
    weigh_all,
    weigh_within,
)
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.analysis.statistics import Interval
from jaxlm.core.results import Results, Row

NAN, INF = math.nan, math.inf


def results_of(values):
    """{(peak_lr, seed): value} as rows of one metric."""
    rows = [Row({"peak_lr": lr}, seed, 9, "loss", v, "nats") for (lr, seed), v in values.items()]
    return Results(study="s", config={}, rows=tuple(rows))


@pytest.mark.parametrize(
    "final, expected",
    [(2.9, False), (2.94, False), (2.96, True), (3.1, True), (NAN, True), (INF, True)],
)
def test_a_run_diverged_unless_it_ends_well_below_the_unigram_distribution(final, expected):
    assert has_diverged(final, 3.0) is expected


def test_the_best_rate_has_the_lowest_mean_and_a_nan_is_never_best():
    values = {(2, 0): 1.0, (2, 1): NAN, (1, 0): 3.0, (1, 1): 3.0, (3, 0): 2.0, (3, 1): 3.5}
    assert lowest_mean(results_of(values), "peak_lr") == (3,)
    assert lowest_mean(results_of({(5, 0): INF, (6, 0): NAN}), "peak_lr") == (5,)


def test_the_difference_pairs_by_seed_whatever_the_order_of_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    order = [3, 0, 4, 2, 1]
    found = difference(
        results_of({(1, seed): a[seed] for seed in range(5)}),
        results_of({(2, seed): b[seed] for seed in order}),
    )
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)
    assert found.mean == pytest.approx(np.mean(a - b))
    assert found.kind == "95% t interval over 5 seeds"


def test_seeds_that_do_not_pair_are_refused():
    one, other = results_of({(1, 0): 1.0, (1, 1): 1.0}), results_of({(1, 0): 1.0, (1, 2): 1.0})
    with pytest.raises(ValueError, match=r"seeds \[0, 1\] against \[0, 2\]"):
        difference(one, other)
    with pytest.raises(ValueError, match="2 rows of 1 seeds"):
        by_seed(results_of({(1, 0): 1.0, (2, 0): 1.0}))


def test_a_band_has_the_t_intervals_of_its_groups():
    values = [1.0, 2.0, 4.0]
    groups = [(10, results_of(dict(zip([(1, 0), (1, 1), (1, 2)], values, strict=True))))]
    found = band("line", groups, dashed=True)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.label, found.x, found.dashed) == ("line", [10], True)
    np.testing.assert_allclose([found.y[0], found.low[0], found.high[0]], [7 / 3, low, high])


def test_a_band_by_a_field_has_a_point_for_each_of_its_values():
    results = results_of({(2, 0): 5.0, (1, 0): 1.0, (2, 1): 7.0, (1, 1): 3.0})
    found = band_by("line", results, "peak_lr", dashed=True)
    assert (found.x, found.y, found.dashed) == ([2, 1], [6.0, 2.0], True)
    assert band_by("line", results, "step").x == [9]


def interval(low, high):
    return Interval((low + high) / 2, low, high, 5, 0.95, "95% t interval over 5 seeds")


@pytest.mark.parametrize(
    "second, expected",
    [((0.1, 0.3), SUPPORTED), ((-0.1, 0.3), INCONCLUSIVE), ((-0.3, -0.1), NOT_SUPPORTED)],
)
def test_a_claim_on_several_holds_where_each_does(second, expected):
    intervals = {"one": interval(0.2, 0.4), "two": interval(*second)}
    found = weigh_all("both rise", "Nats", intervals, above=0.0)
    assert found.verdict == expected
    assert found.evidence.startswith("Nats. one: 0.30 [0.20, 0.40], two: ")
    assert found.evidence.endswith("; 95% t interval over 5 seeds; claimed above 0")
    mirrored = {name: interval(-i.high, -i.low) for name, i in intervals.items()}
    assert weigh_all("both fall", "Nats", mirrored, below=0.0).verdict == expected


@pytest.mark.parametrize(
    "second, expected",
    [
        ((-0.09, 0.09), SUPPORTED),
        ((-0.2, 0.05), INCONCLUSIVE),
        ((0.05, 0.2), INCONCLUSIVE),
        ((-0.3, -0.2), NOT_SUPPORTED),
        ((0.2, 0.3), NOT_SUPPORTED),
    ],
)
def test_a_claim_of_no_difference_holds_where_each_interval_is_within(second, expected):
    intervals = {"one": interval(-0.01, 0.01), "two": interval(*second)}
    found = weigh_within("alike", "Nats", intervals, 0.1)
    assert found.verdict == expected and found.evidence.endswith("; claimed within 0.1")


def test_of_what_is_exact_the_largest_counts():
    assert at_most("exact", [1e-7, 1e-6], 1e-6).verdict == SUPPORTED
    assert at_most("exact", [1e-7, 2e-6], 1e-6).verdict == NOT_SUPPORTED
    assert at_most("exact", [1e-7, NAN], 1e-6).verdict == NOT_SUPPORTED
    assert at_most("exact", [NAN, 1e-7], 1e-6).verdict == NOT_SUPPORTED
    evidence = at_most("exact", [1e-7, 1e-6], 1e-5).evidence
    assert evidence == "Largest of 2: 1e-06; claimed at most 1e-05"
