"""Calibration against scikit-learn's bins, KL against scipy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from jaxlm.evals.probabilities import expected_calibration_error, kl_divergence, reliability

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_the_bins_are_scikit_learns(num_bins):
    rng = np.random.default_rng(num_bins)
    # Edges among them: 0, 1 and multiples of a tenth.
    confidence = np.append(rng.random(50), np.arange(11) / 10)
    right = rng.random(61) < confidence
    of_bins = reliability(confidence, right, num_bins)
    accuracy, mean = calibration_curve(right, confidence, n_bins=num_bins)
    full = of_bins.count > 0
    np.testing.assert_allclose(of_bins.accuracy[full], accuracy, rtol=1e-14)
    np.testing.assert_allclose(of_bins.confidence[full], mean, rtol=1e-14)
    error = np.sum(of_bins.count[full] * np.abs(accuracy - mean)) / 61
    assert expected_calibration_error(confidence, right, num_bins) == pytest.approx(error)


def test_calibration_by_hand():
    """Two of confidence 0.9 and one right, two of 0.3 and none; 0.5 ends the lower of two bins."""
    of_bins = reliability([0.9, 0.9, 0.3, 0.3], [1, 0, 0, 0], 2)
    np.testing.assert_allclose(of_bins, [[0.3, 0.9], [0, 0.5], [2, 2]])
    error = expected_calibration_error([0.9, 0.9, 0.3, 0.3], [1, 0, 0, 0], 2)
    assert error == pytest.approx((0.3 + 0.4) / 2)
    assert reliability([0.5], [1], 2).count.tolist() == [1, 0]
    np.testing.assert_array_equal(reliability([0.5], [1], 2).accuracy, [1, NAN])


def test_divergence_is_scipys():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), size=(2, 3, 4))
    np.testing.assert_allclose(kl_divergence(p, q), stats.entropy(p, q, axis=-1), rtol=1e-12)
    # 1/2 ln(2/3 * ...): by hand, 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    by_hand = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl_divergence([0.5, 0.5], [0.25, 0.75]) == pytest.approx(by_hand)
    assert kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert kl_divergence([0.5, 0.5], [1.0, 0.0]) == INF


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: reliability([], []), "confidence: expected a list of one or more"),
        (lambda: reliability([0.5, 1.5], [0, 1]), r"confidence\[1\]=1.5: .* from 0 to 1"),
        (lambda: reliability([0.5], [0, 1]), "confidence has 1, right has 2"),
        (lambda: reliability([0.5], [1], 0), "num_bins=0"),
        (lambda: kl_divergence([0.5, 0.6], [0.5, 0.5]), "p: expected probabilities of 0 or more"),
        (lambda: kl_divergence([0.5, 0.5], [1.5, -0.5]), "q: expected probabilities of 0 or more"),
        (lambda: kl_divergence([1.0], [0.5, 0.5]), r"p has shape \(1,\) and q \(2,\)"),
        (lambda: kl_divergence([], []), r"p: .* got shape \(0,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
