"""Verdicts at and around the threshold, and evidence that agrees with them."""

import math

import numpy as np
import pytest

from jaxlm.analysis.claims import all_of, evidence, judge, weigh
from jaxlm.analysis.statistics import (
    Interval,
    mean_interval,
    mean_slope_interval,
    proportion_interval,
)

NAN, INF = math.nan, math.inf
YES, NO, OPEN = "supported", "not supported", "inconclusive"


def between(low, high):
    return Interval((low + high) / 2, low, high, 5, 0.95, "95% t interval over 5 seeds")


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.6, 0.9, YES),
        (0.1, 0.4, NO),
        (0.4, 0.6, OPEN),
        (0.5, 0.9, OPEN),  # 0.5 itself is possible, and is not above 0.5
        (0.1, 0.5, NO),  # and here nothing above it is
        (0.5, 0.5, NO),
        (0.75, 0.75, YES),
        (0.25, 0.25, NO),
        (NAN, NAN, OPEN),
        (NAN, 0.4, OPEN),
        (-INF, INF, OPEN),
    ],
)
def test_the_three_verdicts_and_their_mirror_images(low, high, verdict):
    assert judge(between(low, high), above=0.5) == verdict
    assert judge(between(-high, -low), below=-0.5) == verdict


def test_seeds_that_agree_are_judged_like_any_others():
    perfect = mean_interval([1.0] * 32)
    assert judge(perfect, above=0.99) == YES
    assert judge(perfect, above=1.0) == NO
    assert judge(mean_interval([0.1] * 3), above=0.1) == NO  # no rounding tips it over
    assert judge(proportion_interval(32, 32), above=0.85) == YES
    assert judge(proportion_interval(32, 32), above=0.95) == OPEN  # 32 seeds cannot tell


def test_one_seed_and_a_diverged_seed_decide_nothing_and_say_why():
    one = weigh("The loss is below 2.", mean_interval([1.5]), below=2.0)
    assert one.verdict == OPEN
    assert one.evidence == "1.500, no interval over 1 seed; claimed below 2"
    diverged = weigh("The loss is below 2.", mean_interval([1.5, INF, 1.6]), below=2.0)
    assert diverged.verdict == OPEN
    assert diverged.evidence == "inf, no interval: not finite in 1 of 3 seeds; claimed below 2"


def test_a_wrong_claim_is_reported_as_not_supported():
    # Log-norms that rise towards the input at 0.2 a layer, and a study that claims they fall.
    layers = np.arange(16)
    log_norms = -0.2 * layers + 0.05 * np.random.default_rng(0).normal(size=(5, 16))
    slope = mean_slope_interval(layers, log_norms)
    wrong = weigh("The gradient norm falls towards the input.", slope, above=0.0)
    assert wrong.text == "The gradient norm falls towards the input."
    assert wrong.verdict == NO
    assert wrong.evidence.startswith("-0.20") and wrong.evidence.endswith("; claimed above 0")
    assert weigh("It rises.", slope, below=0.0).verdict == YES
    assert all_of([YES, wrong.verdict]) == NO


def test_a_false_claim_is_rarely_called_supported():
    draws = np.random.default_rng(1).normal(size=(2000, 5))  # of mean 0
    verdicts = [judge(mean_interval(values), above=0.0) for values in draws]
    wrong = verdicts.count(YES) / len(verdicts)
    assert abs(wrong - 0.025) < 4 * math.sqrt(0.025 * 0.975 / len(draws))


def test_evidence_is_one_line_with_the_numbers():
    interval = Interval(0.84, 0.71, 0.97, 5, 0.95, "95% t interval over 5 seeds")
    want = "0.84 [0.71, 0.97], 95% t interval over 5 seeds; claimed above 0.5"
    assert evidence(interval, above=0.5) == want


@pytest.mark.parametrize(
    "low, high, numbers",
    [
        (0.5004, 0.75, "0.6252 [0.5004, 0.7500]"),  # supported: not "[0.50, ..."
        (0.25, 0.50000001, "0.37500001 [0.25000000, 0.50000001]"),  # inconclusive, if barely
        (0.4996, 0.75, "0.62 [0.50, 0.75]"),  # inconclusive as printed, too
        (0.5 + 2**-53, 0.75, "0.6250000000000000 [0.5000000000000001, 0.7500000000000000]"),
    ],
)
def test_evidence_never_contradicts_the_verdict(low, high, numbers):
    assert evidence(between(low, high), above=0.5).startswith(numbers + ",")


def test_all_of():
    assert all_of([YES]) == YES
    assert all_of([YES, YES]) == YES
    assert all_of([YES, OPEN]) == OPEN
    assert all_of([OPEN, NO, YES]) == NO
    assert all_of(v for v in (YES, OPEN, OPEN)) == OPEN


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: judge(between(0, 1)), "exactly one"),
        (lambda: judge(between(0, 1), above=0.5, below=0.7), "exactly one"),
        (lambda: judge(between(0, 1), above=NAN), "above=nan"),
        (lambda: evidence(between(0, 1), below=INF), "below=inf"),
        (lambda: all_of([]), "one or more"),
        (lambda: all_of([YES, "Supported"]), "Supported"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
