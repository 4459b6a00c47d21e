"""The gradient noise scale by hand, over every batch that there is, and at its edges."""

import itertools
import math

import numpy as np
import pytest

from jaxlm.analysis.noise_scale import noise_scale

NAN, INF = math.nan, math.inf


def test_noise_scale_by_hand():
    # gradients (3, 0) and (1, 2): square norms 9 and 5, mean 7; their mean (2, 1) has 5.
    # |G|^2 = (2*5 - 7) / 1 = 3, which is (3, 0).(1, 2); tr = (7 - 5) * 2 / 1 = 4, the sample
    # variances (1 + 1) / 1 of either coordinate.
    assert noise_scale(7, 5, 2) == (4, 3, 4 / 3)


def test_noise_scale_is_unbiased_over_every_batch_there_is():
    examples = np.random.default_rng(4).normal(size=(4, 3)) + [1, 0, -1]
    estimates = []
    for batch in itertools.product(examples, repeat=3):  # 64 batches, drawn with replacement
        batch = np.array(batch)
        norms = np.sum(batch**2, axis=1)
        estimates.append(noise_scale(norms.mean(), np.sum(batch.mean(axis=0) ** 2), 3))
    trace, square_norm = np.mean([e[:2] for e in estimates], axis=0)
    np.testing.assert_allclose(trace, np.var(examples, axis=0).sum(), rtol=1e-12)
    np.testing.assert_allclose(square_norm, np.sum(examples.mean(axis=0) ** 2), rtol=1e-12)


def test_noise_scale_of_many_batches_comes_from_their_mean_norms():
    rng, dim, batch_size = np.random.default_rng(5), 10, 8
    gradient, sigma = rng.normal(size=dim), 1.5
    batches = gradient + sigma * rng.normal(size=(4000, batch_size, dim))
    of_examples = np.mean(np.sum(batches**2, axis=2))
    of_means = np.mean(np.sum(batches.mean(axis=1) ** 2, axis=1))
    estimate = noise_scale(of_examples, of_means, batch_size)
    # 32,000 draws: the ratio is good to about a percent. Taking |g_B|^2 itself for |G|^2 would
    # be wrong by tr / (B |G|^2).
    want = sigma**2 * dim / np.sum(gradient**2)
    assert want / batch_size > 0.1
    np.testing.assert_allclose(estimate.scale, want, rtol=0.03)


def test_noise_scale_at_the_edges():
    drowned = noise_scale(4.0, 1.0, 2)  # gradients (1, sqrt 3) and (1, -sqrt 3): product -2
    assert drowned == (6, -2, INF)
    assert noise_scale(2.0, 1.0, 2) == (2, 0, INF)
    np.testing.assert_equal(tuple(noise_scale(0.0, 0.0, 2)), (0, 0, NAN))
    np.testing.assert_equal(tuple(noise_scale(INF, 1.0, 2)), (NAN, NAN, NAN))
    assert noise_scale(1.0, np.float32(1.0000001), 4).trace == 0  # equal examples, rounded sums


@pytest.mark.parametrize(
    "arguments, message", [((1, 1, 1), "batch_size=1"), ((5, 7, 2), "swapped")]
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise_scale(*arguments)
