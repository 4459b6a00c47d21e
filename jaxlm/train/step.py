"""One training step, a pure function of (state, batch) for any loss given as sums."""

from collections.abc import Callable

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

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:  # each device drops out for itself
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        grads, metrics, carry = _summed_gradients(loss_fn, state, batch, key, num_microbatches)
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
        spike = optax.tree.get(opt_state, "spike")  # where the optimizer watches the loss
        params, opt_state, carry = new
        metrics |= {
            "grad_norm": Mean(grad_norm, jnp.float32(1)),
            "update_norm": Mean(optax.tree.norm(updates), jnp.float32(1)),
            "finite": Mean(finite.astype(jnp.float32), jnp.float32(1)),
        }
        if spike is not None:
            metrics["spike"] = Mean(spike.astype(jnp.float32), jnp.float32(1))
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carry)
        return state, metrics

    return step


def _summed_gradients(loss_fn, state, batch, key, num_parts):
    """(gradients of the summed loss, metrics, carry), the batch read in `num_parts` parts."""
    grad_fn, rest = jax.grad(loss_fn, has_aux=True), (state.frozen, state.carry, state.hypers)

    def gradients(part, part_key):
        return grad_fn(state.params, *rest, part, part_key)

    if num_parts == 1:
        grads, (metrics, carry) = gradients(batch, key)
        return grads, metrics, carry
    if state.carry:
        raise ValueError("a model that carries state cannot use microbatches")
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    keys = jax.random.split(key, num_parts)

    def accumulate(total, each):
        grads, (metrics, _) = gradients(*each)
        return jax.tree.map(jnp.add, total, (grads, metrics)), None

    one = jax.tree.map(lambda x: x[0], (parts, keys))
    _, (metrics, _) = jax.eval_shape(loss_fn, state.params, *rest, *one)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, metrics))
    (grads, metrics), _ = jax.lax.scan(accumulate, zeros, (parts, keys))
    return grads, metrics, state.carry
