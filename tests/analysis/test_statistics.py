"""Each statistic worked by hand, against scipy or an exact enumeration, and at its edges."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from jaxlm.analysis.statistics import (
    Interval,
    brief,
    mean_interval,
    mean_slope_interval,
    paired_interval,
    proportion_interval,
    ratio_interval,
    slope_interval,
)

NAN, INF = math.nan, math.inf
T_4 = 2.776445105  # 97.5% point of Student's t with 4 degrees of freedom, from a printed table
T_2 = 4.302652730  # with 2
T_1 = 12.706204736  # with 1


def no_interval(interval):
    return math.isnan(interval.low) and math.isnan(interval.high)


def test_it_imports_without_jax():
    code = "import sys; sys.modules['jax'] = None; import jaxlm.analysis.claims"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mean_interval_by_hand():
    # mean 3; squared deviations 4 + 1 + 0 + 1 + 4 = 10; s^2 = 10 / 4; stderr^2 = 2.5 / 5 = 0.5
    interval = mean_interval([1, 2, 3, 4, 5])
    half = T_4 * math.sqrt(0.5)  # 1.963
    assert interval.mean == 3
    np.testing.assert_allclose(interval[1:3], [3 - half, 3 + half], rtol=1e-9)
    assert (interval.num, interval.confidence) == (5, 0.95)
    assert str(interval) == "3.0 [1.0, 5.0], 95% t interval over 5 seeds"


@pytest.mark.parametrize("num, confidence", [(2, 0.95), (5, 0.9), (30, 0.999)])
def test_mean_interval_is_scipys(num, confidence):
    values = np.random.default_rng(num).normal(size=num) + 1e3
    want = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    got = mean_interval(values, confidence)
    np.testing.assert_allclose(got[:3], [values.mean(), want.low, want.high], rtol=1e-12)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    num_trials = 4000
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(num_trials, 5))
    hits = sum(i.low <= 2.0 <= i.high for i in map(mean_interval, draws))
    # Four standard errors are 1.4%; with the normal's 1.96 for t(4) only 87.8% would be covered.
    assert abs(hits / num_trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / num_trials)


@pytest.mark.parametrize("value, num", [(0.1, 3), (1 / 3, 7), (1.0, 32), (0.0, 5), (2.3e-8, 11)])
def test_seeds_that_agree_give_that_very_value(value, num):
    assert mean_interval([value] * num)[:3] == (value, value, value)


def test_one_value_has_no_interval():
    interval = mean_interval([0.84])
    assert interval.mean == 0.84 and no_interval(interval)
    assert str(interval) == "0.8400, no interval over 1 seed"


@pytest.mark.parametrize(
    "values, mean",
    [([1, NAN, 2], NAN), ([1, INF, 2], INF), ([1, -INF, 2], -INF), ([INF, -INF, 2], NAN)],
)
def test_a_diverged_run_does_not_vanish_from_the_mean(values, mean):
    interval = mean_interval(values)
    np.testing.assert_equal(interval.mean, mean)
    assert no_interval(interval) and interval.num == 3
    lost = 2 if INF in values and -INF in values else 1
    assert str(interval) == f"{mean}, no interval: not finite in {lost} of 3 seeds"


def test_proportion_by_hand():
    # 32 of 32: the low end p has p^32 = 0.025, so p = 0.025^(1/32) = exp(-3.68888 / 32) = 0.8911
    every = proportion_interval(32, 32)
    np.testing.assert_allclose(every[:3], [1, math.exp(-3.688879454 / 32), 1], rtol=1e-9)
    assert str(every) == "1.00 [0.89, 1.00], 95% Clopper-Pearson interval over 32 trials"
    none = proportion_interval(0, 32)
    np.testing.assert_allclose(none[:3], [0, 0, 1 - every.low], rtol=1e-9)
    # 1 of 2: 1 - (1 - p)^2 = 0.025 at p = 1 - sqrt(0.975) = 0.01258, and its mirror image
    low = 1 - math.sqrt(0.975)
    np.testing.assert_allclose(proportion_interval(1, 2)[:3], [0.5, low, 1 - low], rtol=1e-9)


@pytest.mark.parametrize("successes, num", [(0, 1), (1, 1), (3, 5), (17, 100), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_proportion_is_scipys(successes, num, confidence):
    want = stats.binomtest(successes, num).proportion_ci(confidence, method="exact")
    got = proportion_interval(successes, num, confidence)
    np.testing.assert_allclose(got[:3], [successes / num, want.low, want.high], atol=1e-9)


def test_proportion_never_covers_less_than_it_says_and_wilson_would():
    num, p = 32, np.linspace(0.0005, 0.9995, 1999)
    chances = stats.binom.pmf(np.arange(num + 1)[:, None], num, p)

    def worst_coverage(bounds):
        low, high = np.array(bounds).T[..., None]
        return np.sum(chances * ((low <= p) & (p <= high)), axis=0).min()

    counts = range(num + 1)
    wilson = [stats.binomtest(k, num).proportion_ci(0.95, method="wilson") for k in counts]
    assert worst_coverage([proportion_interval(k, num)[1:3] for k in counts]) >= 0.95
    assert 0.83 < worst_coverage([(w.low, w.high) for w in wilson]) < 0.85


def test_paired_interval_by_hand():
    # differences 1, 2, 3: mean 2, s^2 = (1 + 0 + 1) / 2 = 1, stderr = 1 / sqrt(3)
    interval = paired_interval([11, 22, 33], [10, 20, 30])
    half = T_2 / math.sqrt(3)
    np.testing.assert_allclose(interval[:3], [2, 2 - half, 2 + half], rtol=1e-9)
    assert interval.kind == "95% t interval over 3 pairs"


def test_paired_interval_is_scipys_and_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=8)  # what a seed does to both settings
    a, b = shared + 0.1 * rng.normal(size=8) + 0.3, shared + 0.1 * rng.normal(size=8)
    got = paired_interval(a, b, 0.9)
    paired = stats.ttest_rel(a, b).confidence_interval(0.9)
    unpaired = stats.ttest_ind(a, b).confidence_interval(0.9)
    np.testing.assert_allclose(got[1:3], [paired.low, paired.high], rtol=1e-10)
    assert got.high - got.low < 0.3 * (unpaired.high - unpaired.low)


def test_two_runs_that_both_diverged_are_not_equal():
    assert math.isnan(paired_interval([INF, 1], [INF, 1]).mean)
    assert math.isnan(ratio_interval([INF, 1], [INF, 1]).mean)


def test_ratio_interval_by_hand():
    # ratios 2 and 8: logs ln 2 and 3 ln 2, mean 2 ln 2, s^2 = 2 (ln 2)^2, stderr = ln 2
    interval = ratio_interval([2, 24], [1, 3])
    half = T_1 * math.log(2)
    want = [4, 4 * math.exp(-half), 4 * math.exp(half)]
    np.testing.assert_allclose(interval[:3], want, rtol=1e-8)
    assert interval.kind == "95% t interval of the log ratio over 2 pairs"


def test_ratio_interval_inverts_when_its_sides_are_swapped():
    a, b = np.random.default_rng(2).lognormal(size=(2, 6))
    there, back = ratio_interval(a, b), ratio_interval(b, a)
    assert there.low < stats.gmean(a / b) < there.high
    np.testing.assert_allclose(there.mean, stats.gmean(a / b), rtol=1e-12)
    want = [1 / back.mean, 1 / back.high, 1 / back.low]
    np.testing.assert_allclose(there[:3], want, rtol=1e-12)


def test_slope_by_hand():
    # x 0 1 2 (mean 1, Sxx 2), y 1 1 4 (mean 2, Syy 6), Sxy = -1*-1 + 0*-1 + 1*2 = 3, slope 1.5,
    # intercept 2 - 1.5 = 0.5, residuals 0.5 -1 0.5, SSE 1.5, r2 = 1 - 1.5/6,
    # stderr^2 = 1.5 / 1 / 2 = 0.75
    slope, intercept, r2 = slope_interval([0, 1, 2], [1, 1, 4])
    half = T_1 * math.sqrt(0.75)
    np.testing.assert_allclose(slope[:3], [1.5, 1.5 - half, 1.5 + half], rtol=1e-9)
    np.testing.assert_allclose([intercept, r2], [0.5, 0.75], rtol=1e-14)
    assert slope.kind == "95% t interval of a line through 3 points"


@pytest.mark.parametrize("num, confidence", [(3, 0.95), (12, 0.9), (64, 0.99)])
def test_slope_is_scipys(num, confidence):
    rng = np.random.default_rng(num)
    x, noise = np.sort(rng.normal(size=num)) + 50, rng.normal(size=num)
    y = -2 * x + 7 + noise
    slope, intercept, r2 = slope_interval(x, y, confidence)
    want = stats.linregress(x, y)
    half = stats.t.ppf(0.5 + confidence / 2, num - 2) * want.stderr
    np.testing.assert_allclose(
        [slope.mean, slope.low, slope.high, intercept, r2],
        [want.slope, want.slope - half, want.slope + half, want.intercept, want.rvalue**2],
        rtol=1e-9,
    )


def test_slopes_at_the_edges():
    two = slope_interval([0, 1], [3, 5])
    assert two.slope.mean == 2 and no_interval(two.slope) and two.intercept == 3
    assert two.slope.kind == "no interval over 2 points"
    flat = slope_interval([0, 1, 2, 3], [0.1, 0.1, 0.1, 0.1])
    assert flat.slope[:3] == (0, 0, 0) and flat.intercept == 0.1 and math.isnan(flat.r2)
    lost = slope_interval([0, 1, 2], [0, -INF, 1])  # the log of a norm that underflowed
    assert math.isnan(lost.slope.mean) and no_interval(lost.slope)
    assert lost.slope.kind == "no interval: not finite in 1 of 3 points"


def test_mean_slope_by_hand():
    # slopes 1, 2, 3 around different levels: mean 2, stderr 1 / sqrt(3)
    interval = mean_slope_interval([0, 1, 2], [[5, 6, 7], [0, 2, 4], [-9, -6, -3]])
    half = T_2 / math.sqrt(3)
    np.testing.assert_allclose(interval[:3], [2, 2 - half, 2 + half], rtol=1e-9)
    assert interval.kind == "95% t interval over 3 seeds"


def test_mean_slope_is_scipys_slopes_and_keeps_a_lost_seed():
    x = np.arange(8.0)
    ys = np.random.default_rng(3).normal(size=(5, 8)).cumsum(axis=1)
    slopes = [stats.linregress(x, y).slope for y in ys]
    want = stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    got = mean_slope_interval(x, ys)
    np.testing.assert_allclose(got[:3], [np.mean(slopes), want.low, want.high], rtol=1e-9)
    ys[2, 4] = -INF
    lost = mean_slope_interval(x, ys)
    assert math.isnan(lost.mean) and lost.kind == "no interval: not finite in 1 of 5 seeds"


@pytest.mark.parametrize(
    "interval, text",
    [
        ((1.87441, 1.87313, 1.87569), "1.8744 [1.8731, 1.8757]"),
        ((1234.5, 811.0, 1658.0), "1234 [811, 1658]"),
        ((-0.001, -0.5, 0.498), "0.00 [-0.50, 0.50]"),
        ((1.2e-9, 0.9e-9, 1.5e-9), "1.20e-09 [9.00e-10, 1.50e-09]"),
        ((4.1e12, 1e12, 7.2e12), "4.1e+12 [1.0e+12, 7.2e+12]"),
        ((1.0, 1.0, 1.0), "1.000 [1.000, 1.000]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        (
            (1.0, 1.0 - 1e-16, 1.0 + 2e-16),
            "1.0000000000000000 [0.9999999999999999, 1.0000000000000002]",
        ),
        ((1.0, -INF, INF), "1.000 [-inf, inf]"),
    ],
)
def test_numbers_show_two_digits_of_the_width(interval, text):
    assert str(Interval(*interval, 5, 0.95, "a kind")) == text + ", a kind"


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_interval([]), "values: expected a list of numbers"),
        (lambda: mean_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: mean_interval([1, 2], 95), "confidence=95"),
        (lambda: mean_interval([1], 1.0), "confidence=1.0"),
        (lambda: proportion_interval(6, 5), "successes=6 of num=5"),
        (lambda: proportion_interval(-1, 5), "successes=-1"),
        (lambda: proportion_interval(0, 0), "num=0"),
        (lambda: proportion_interval(0.9, 32), "expected a count"),
        (lambda: proportion_interval(1, 2, 0), "confidence=0"),
        (lambda: paired_interval([1, 2], [1, 2, 3]), "a has 2 values and b has 3"),
        (lambda: ratio_interval([1, 0], [1, 2]), r"a\[1\]=0.0"),
        (lambda: ratio_interval([1, 1], [-1, 2]), r"b\[0\]=-1.0"),
        (lambda: slope_interval([1, 1], [1, 2]), "not all equal"),
        (lambda: slope_interval([1, NAN], [1, 2]), "finite"),
        (lambda: slope_interval([1, 2], [1, 2], -1), "confidence=-1"),
        (lambda: mean_slope_interval([1, 2], [1, 2]), "expected .repetitions, points."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_brief_is_the_interval_or_the_mean_alone():
    """4.303 (t of 2 degrees of freedom) * 1 / sqrt(3) = 2.484 to each side of 2."""
    assert brief(mean_interval([1.0, 2.0, 3.0])) == "2.0 [-0.5, 4.5]"
    assert brief(mean_interval([2.5])) == "2.500"
