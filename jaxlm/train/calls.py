"""Several steps as one call: scanned, and compiled for a mesh of devices or by pmap."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlm.train.state import TrainState


def scan_apart(step: Callable) -> Callable:
    """`run(moving, frozen, batches) -> (moving, metrics)`: several steps in one program.

    Every leaf of `batches` and of the metrics has a leading axis of steps. The state goes in and
    comes out without its frozen part, so that it can be shared and is never copied.
    """

    def run(moving, frozen, batches):
        def without_frozen(moving, batch):
            state, metrics = step(moving.replace(frozen=frozen), batch)
            return state.replace(frozen={}), metrics

        return jax.lax.scan(without_frozen, moving, batches)

    return run


class Shardings(NamedTuple):
    """Where what a compiled call reads and gives lies; each a sharding, or a tree of them."""

    state: TrainState
    batches: Any
    metrics: Any


def with_frozen(run: Callable) -> Callable:
    """`run(moving, frozen, batches)`, such as `scan_apart`'s, as one of (state, batches)."""

    def run_state(state, batches):
        moving, metrics = run(state.replace(frozen={}), state.frozen, batches)
        return moving.replace(frozen=state.frozen), metrics

    return run_state


def jit_steps(step: Callable, shardings: Shardings) -> Callable:
    """`scan_apart(step)`, jitted; it donates the moving part of the state."""
    state, batches, metrics = shardings
    moving = state.replace(frozen={})

    def pinned(state, batch):  # else the loop over steps may keep it as suits the optimizer
        pin = functools.partial(jax.lax.with_sharding_constraint, shardings=shardings.state)
        state, metrics = step(pin(state), batch)
        return pin(state), metrics

    return jax.jit(
        scan_apart(pinned),
        donate_argnums=0,
        in_shardings=(moving, state.frozen, batches),
        out_shardings=(moving, metrics),
    )


def pmap_steps(step: Callable, axis_name: str, devices: Sequence[Any]) -> Callable:
    """As `jit_steps`, by pmap: each device has the whole state and some rows of the batch.

    Args:
      step: made with this `axis_name`.
    Returns:
      (moving, frozen, batches as `split_rows` gives them) -> (moving, metrics).
    """
    return jax.pmap(
        scan_apart(step),
        axis_name=axis_name,
        in_axes=(None, None, 1),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=0,
    )


def split_rows(batches: Any, num_devices: int) -> Any:
    """[steps, B, ...] -> [steps, num_devices, B / num_devices, ...], of every leaf."""
    return jax.tree.map(lambda x: x.reshape(len(x), num_devices, -1, *x.shape[2:]), batches)
