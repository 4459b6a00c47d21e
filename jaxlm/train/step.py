"""One training step, a pure function of (state, batch) for any loss given as sums."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.metrics import Mean, Metrics
from jaxlm.train.state import TrainState


def make_train_step(
    loss_fn: Callable,
    make_tx: Callable,
    *,
    num_microbatches: int = 1,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, object], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)`.

    Gradients are summed over microbatches (and over `axis_name` under pmap) and divided once by
    the weight of the metric "loss", so unequal masks do not bias the average.

    Args:
      loss_fn: (params, frozen, carry, hypers, batch, key) -> (loss_sum, (Metrics, carry)).
      make_tx: hypers -> optax transform; built inside the step, so no number is baked in.
      num_microbatches: the batch's leading axis is cut into so many parts, run one by one.
      skip_nonfinite: a step whose loss or gradient is not finite changes nothing but the step
        number.
    Returns:
      step; its metrics are the loss function's and "grad_norm", "update_norm" (global L2), and
      "finite" (1 or 0), and "spike" (1 or 0) where `make_tx` is one of
      `jaxlm.optim.loss_spikes.watch_loss`. The optimizer is given the loss as `value`.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:  # each device drops out for itself
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def gradients(carry, part, part_key):
            return grad_fn(state.params, state.frozen, carry, state.hypers, part, part_key)

        if num_microbatches == 1:
            grads, (metrics, carry) = gradients(state.carry, batch, key)
        else:
            if state.carry:
                raise ValueError("a model that carries state cannot use microbatches")
            parts = jax.tree.map(lambda x: x.reshape(num_microbatches, -1, *x.shape[1:]), batch)
            keys = jax.random.split(key, num_microbatches)

            def accumulate(total, each):
                grads, (metrics, _) = gradients(state.carry, *each)
                return jax.tree.map(jnp.add, total, (grads, metrics)), None

            one = jax.tree.map(lambda x: x[0], (parts, keys))
            rest = (state.frozen, state.carry, state.hypers, *one)
            _, (sums, _) = jax.eval_shape(loss_fn, state.params, *rest)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, sums))
            (grads, metrics), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
            carry = state.carry
        if axis_name is not None:
            grads, metrics = jax.lax.psum((grads, metrics), axis_name)

        num_tokens = metrics["loss"].weight
        grads = jax.tree.map(lambda g: g / num_tokens, grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(metrics["loss"].total)
        loss, tx = metrics["loss"].compute(), optax.with_extra_args_support(make_tx(state.hypers))
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
        new = (optax.apply_updates(state.params, updates), opt_state, carry)
        if skip_nonfinite:
            old = (state.params, state.opt_state, state.carry)
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        params, opt_state, carry = new
        metrics |= {
            "grad_norm": Mean(grad_norm, jnp.float32(1)),
            "update_norm": Mean(optax.tree.norm(updates), jnp.float32(1)),
            "finite": Mean(finite.astype(jnp.float32), jnp.float32(1)),
        }
        spike = optax.tree.get(opt_state, "spike")  # where the optimizer watches the loss
        if spike is not None:
            metrics["spike"] = Mean(spike.astype(jnp.float32), jnp.float32(1))
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carry)
        return state, metrics

    return step


def scan_steps(step: Callable) -> Callable:
    """`run(state, batches) -> (state, metrics)`: several steps in one program.

    Every leaf of `batches` and of the metrics has a leading axis of steps.
    """

    def run(state, batches):
        return jax.lax.scan(step, state, batches)

    return run


def scan_apart(step: Callable) -> Callable:
    """`run(moving, frozen, batches) -> (moving, metrics)`: `scan_steps`, the frozen part apart.

    The state goes in and comes out without it, so that it can be shared and is never copied.
    """

    def run(moving, frozen, batches):
        def without_frozen(moving, batch):
            state, metrics = step(moving.replace(frozen=frozen), batch)
            return state.replace(frozen={}), metrics

        return scan_steps(without_frozen)(moving, batches)

    return run


class Shardings(NamedTuple):
    """Where what a compiled call reads and gives lies; each a sharding, or a tree of them."""

    state: TrainState
    batches: Any
    metrics: Any


def compile_steps(step: Callable, shardings: Shardings | None = None) -> Callable:
    """`scan_steps(step)`, compiled; it overwrites the state given, all but the frozen part.

    What is frozen is an argument of the program and none of its results: no copy is made.
    """
    return with_frozen(jit_steps(step, shardings))


def with_frozen(run: Callable) -> Callable:
    """`run(moving, frozen, batches)` of the functions below as one of (state, batches)."""

    def run_state(state, batches):
        moving, metrics = run(state.replace(frozen={}), state.frozen, batches)
        return moving.replace(frozen=state.frozen), metrics

    return run_state


def jit_steps(step: Callable, shardings: Shardings | None = None) -> Callable:
    """`scan_apart(step)`, jitted; it donates the moving part of the state."""
    if shardings is None:
        return jax.jit(scan_apart(step), donate_argnums=0)
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
