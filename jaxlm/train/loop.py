"""The loop around a step: which batch comes next, and who is told about it."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxlm.core.metrics import Metrics
from jaxlm.train.state import TrainState

Hook = Callable[[int, TrainState, dict[str, np.ndarray]], bool | None]


def run_loop(
    run: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batch_at: Callable[[int], Any],
    *,
    start: int,
    num_steps: int,
    steps_per_call: int,
    hooks: Iterable[Hook],
) -> TrainState:
    """Trains from step `start` to `num_steps`; all input and output is the hooks' business.

    A call runs the steps up to the next multiple of `steps_per_call`, so that where calls end does
    not depend on where the loop started.

    Args:
      run: (state, batches with a leading axis of steps) -> (state, metrics likewise), usually
        compiled; it may donate the state.
      batch_at: step -> batch of numpy arrays, a pure function. The next call's batches are made
        while the device works on this one's.
      hooks: called in order after each call with (updates done, state, {metric: f32 [steps]}).
        One that returns True ends the loop. They must not keep the state, which the next call
        may overwrite.
    """

    def batches(first):
        each = [batch_at(step) for step in range(first, next_edge(first))]
        return jax.tree.map(lambda *parts: np.stack(parts), *each)

    def next_edge(step):
        return min(num_steps, step - step % steps_per_call + steps_per_call)

    done = start
    ahead = batches(done) if done < num_steps else None
    while done < num_steps:
        state, metrics = run(state, ahead)
        done = next_edge(done)
        if done < num_steps:
            ahead = batches(done)
        # The host waits here, and only here, for the device.
        values = {
            name: np.asarray(mean.compute()) for name, mean in jax.device_get(metrics).items()
        }
        stops = [hook(done, state, values) for hook in hooks]
        if any(stops):
            break
    return state
