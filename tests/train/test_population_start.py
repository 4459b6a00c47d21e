"""Lanes that start from given weights."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.metrics import Mean
from jaxlm.train.population import train_population
from jaxlm.train.state import TrainState


def test_every_lane_starts_from_the_weights_given_and_learns_at_its_own_rate():
    rates, start, target = np.float32([0.5, 0.1, 0.0]), np.float32([1.0, -2.0]), 3.0

    def init(seed, hypers):
        drawn = jax.random.normal(jax.random.key(seed), (2,))
        return TrainState(jnp.int32(0), {"w": drawn}, {}, {}, hypers, {}, jax.random.key(seed))

    def step(state, x):
        w = state.params["w"]
        moved = {"w": w - state.hypers["rate"] * (w - x)}
        return state.replace(params=moved), {"loss": Mean(jnp.sum(w), jnp.float32(1))}

    trained = train_population(
        init,
        step,
        seeds=[0, 1, 2],
        hypers={"rate": rates},
        inputs=lambda first, last: np.full((3, last - first), target, np.float32),
        num_steps=4,
        start={"w": start},
    )
    want = target + (1 - rates[:, None]) ** 4 * (start - target)
    np.testing.assert_allclose(trained.state.params["w"], want, atol=1e-5)
    np.testing.assert_allclose(trained.metrics["loss"][:, 0], [start.sum()] * 3)
