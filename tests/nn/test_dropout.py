import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn.dropout import dropout

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(200, 100)) + 2, jnp.float32)
DROPPED = quick_jit(dropout)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_is_zeroed_and_the_rest_scaled_so_that_the_mean_stays(rate):
    y = np.asarray(DROPPED(X, rate, KEY))
    kept = y != 0
    # 20,000 draws: four standard errors
    error = 4 * np.sqrt(rate * (1 - rate) / X.size)
    assert abs(kept.mean() - (1 - rate)) < error
    np.testing.assert_allclose(y[kept], np.asarray(X)[kept] / (1 - rate), rtol=1e-6)
    assert abs(y.mean() / X.mean() - 1) < 2 * error / (1 - rate)


def test_without_a_key_nothing_is_dropped():
    assert dropout(X, 0.5, None) is X


def test_a_rate_of_zero_leaves_x_as_it_is():
    np.testing.assert_array_equal(DROPPED(X, 0.0, KEY), X)


def test_the_key_decides_what_is_dropped():
    first, again = DROPPED(X, 0.5, KEY), DROPPED(X, 0.5, KEY)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, DROPPED(X, 0.5, jax.random.key(1)))


def test_the_rate_is_traced_and_one_program_serves_all():
    traces = []

    @quick_jit
    def counted(x, rate, key):
        traces.append(rate)
        return dropout(x, rate, key)

    for rate in (0.1, 0.2, 0.3):
        counted(X, rate, KEY)
    assert len(traces) == 1


def test_the_gradient_passes_where_x_was_kept():
    y, pull = jax.vjp(lambda x: dropout(x, 0.25, KEY), X)
    (grad,) = pull(jnp.ones_like(X))
    np.testing.assert_allclose(grad, np.where(np.asarray(y) != 0, 1 / 0.75, 0), rtol=1e-6)


def test_bfloat16_is_kept_and_its_mean_too():
    ones = jnp.ones((200, 100), jnp.bfloat16)
    y = DROPPED(ones, 0.1, KEY)
    assert y.dtype == jnp.bfloat16
    kept = np.asarray(y[y != 0], np.float64)
    # 1 / 0.9 rounded to the nearest bfloat16, whose spacing there is 2^-7
    assert np.abs(kept - 1 / 0.9).max() <= 2**-8


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_in_bfloat16_the_mean_of_all_values_stays(rate):
    """Scaled by the rate itself: 1 - rate rounded to bfloat16 is off by up to a fifth of a percent,
    of every value and in one direction."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (200, 100)), jnp.bfloat16)
    y, x = (np.asarray(a, np.float64) for a in (DROPPED(x, rate, KEY), x))
    assert abs(np.mean(y[y != 0] / x[y != 0]) * (1 - rate) - 1) < 2e-4
