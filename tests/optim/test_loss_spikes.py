"""A loss that jumps is seen, and the statistics are those of numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit

from jaxlm.optim.loss_spikes import LEAST_SIGMA, MEMORY, WARMUP, watch_loss

SIGMAS = 4.0


def run(losses, skip=False):
    """[(spike, mean, sigma, params)] after each loss, for a gradient of one."""
    tx = watch_loss(lambda hypers: optax.trace(0.5), SIGMAS, skip=skip)({})

    @quick_jit
    def steps(losses):
        def step(carry, loss):
            params, state = carry
            updates, state = tx.update(jnp.float32(1), state, params, value=loss)
            params = params + updates
            seen = (state.spike, state.mean, jnp.sqrt(state.variance), params, state.inner.trace)
            return (params, state), seen

        params = jnp.float32(0)
        return jax.lax.scan(step, (params, tx.init(params)), losses)[1]

    return jax.device_get(steps(jnp.asarray(losses, jnp.float32)))


def by_definition(losses):
    """Means over all so far, then exponential ones; in float64, one loss at a time."""
    mean = variance = 0.0
    rows = []
    for n, loss in enumerate(losses):
        limit = mean + SIGMAS * max(np.sqrt(variance), LEAST_SIGMA)
        spike = n >= WARMUP and loss > limit
        loss = limit if spike else loss if np.isfinite(loss) else mean
        weight = 1 / min(n + 1, MEMORY)
        old = mean
        mean = (1 - weight) * mean + weight * loss
        variance = (1 - weight) * (variance + old**2) + weight * loss**2 - mean**2
        rows.append((spike, mean, np.sqrt(max(variance, 0))))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def losses():
    rng = np.random.default_rng(0)
    curve = 2 + 2 * np.exp(-np.arange(400) / 60) + 0.05 * rng.normal(size=400)
    curve[[5, 150, 151]] += 6.0  # the first before the warm-up is over
    curve[200] = np.nan
    curve[260:] += 6.0  # for good
    return curve


def test_jumps_are_seen_and_the_statistics_are_those_of_the_definition(losses):
    spike, mean, sigma, *_ = run(losses)
    want_spike, want_mean, want_sigma = by_definition(losses)
    np.testing.assert_array_equal(spike, want_spike)
    np.testing.assert_allclose(mean, want_mean, rtol=1e-5)
    np.testing.assert_allclose(sigma, want_sigma, rtol=1e-3)
    assert {150, 151, 260} <= set(np.flatnonzero(spike)) and not spike[[5, 149, 152, 200]].any()
    assert not spike[-10:].any()  # a lasting change is one no longer
    plain = np.arange(400)
    assert np.std(losses[plain < WARMUP]) == pytest.approx(sigma[WARMUP - 1], rel=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_a_skipped_step_changes_nothing(losses, skip):
    spike, _, _, params, trace = run(losses, skip)
    for n in np.flatnonzero(spike):
        unchanged = params[n] == params[n - 1] and trace[n] == trace[n - 1]
        assert unchanged == skip
