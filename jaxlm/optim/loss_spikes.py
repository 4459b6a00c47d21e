"""An optimizer that watches the loss and knows a step at which it jumps.

Its statistics are a part of the optimizer's state, so they are saved and restored with it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.arrays import Array

MEMORY = 100  # steps over which the mean and the deviation of the loss are taken
WARMUP = 20  # steps before which nothing is called a jump
LEAST_SIGMA = 0.01  # nats; a loss that hardly moves is not to jump at a hair


class WatchState(NamedTuple):
    """count, mean, variance: f32[], of the loss so far. spike: bool[], of the last step alone.

    inner: the state of the optimizer.
    """

    count: Array
    mean: Array
    variance: Array
    spike: Array
    inner: Any


def watch_loss(
    make_tx: Callable[..., optax.GradientTransformation], num_sigmas: float, *, skip: bool
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """`make_tx`, whose optimizer is given the loss as `value` and sees it jump.

    A loss jumps when it is above the mean by more than `num_sigmas` standard deviations, both over
    about the last 100 steps. A jump enters the statistics as no more than that limit, so that one
    does not hide the next, and a lasting change is taken for what it is after some steps.

    Args:
      make_tx: hypers -> optax transform.
      skip: a step at which the loss jumps changes neither parameters nor the optimizer's state.
    """

    def build(hypers):
        tx = make_tx(hypers)

        def init(params):
            zero = jnp.zeros((), jnp.float32)
            return WatchState(zero, zero, zero, jnp.zeros((), bool), tx.init(params))

        def update(updates, state, params=None, *, value, **_):
            sigma = jnp.maximum(jnp.sqrt(state.variance), LEAST_SIGMA)
            limit = state.mean + num_sigmas * sigma
            spike = (state.count >= WARMUP) & (value > limit)
            seen = jnp.where(spike, limit, jnp.where(jnp.isfinite(value), value, state.mean))
            count = jnp.minimum(state.count + 1, MEMORY)
            delta = seen - state.mean
            mean = state.mean + delta / count
            variance = (1 - 1 / count) * (state.variance + delta * delta / count)
            updates, inner = tx.update(updates, state.inner, params)
            if skip:
                updates = jax.tree.map(lambda u: jnp.where(spike, 0, u), updates)
                inner = jax.tree.map(lambda n, o: jnp.where(spike, o, n), inner, state.inner)
            return updates, WatchState(count, mean, variance, spike, inner)

        return optax.GradientTransformationExtraArgs(init, cast(Any, update))  # it needs `value`

    return build
