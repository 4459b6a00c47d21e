"""Norms of gradients: of each layer, of the residual stream between layers, of single examples.

Through 64 layers a gradient can leave the range whose squares float32 holds (about 1e-19 to 1e19)
long before it leaves that of float32 itself, so every norm is taken relative to its largest entry.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params


class GradientNorms(NamedTuple):
    """L2 norms of the gradient of a mean loss over B examples.

    layers: f32[N], of all parameters of a layer together.
    stream: f32[N], of the residual stream that enters each layer, of all examples together.
    whole: f32[], of all parameters.
    examples: f32[B], of all parameters, for the loss of one example alone.
    """

    layers: Array
    stream: Array
    whole: Array
    examples: Array


def gradient_norms(
    loss_fn: Callable[[Params, Array, Any], Array],
    params: Params,
    probes: Array,
    examples: Any,
    specs: dict[str, Any],
    at_once: int | None = None,
) -> GradientNorms:
    """All of them from one backward pass an example.

    Args:
      loss_fn: (params, probes, one example) -> scalar.
      probes: zeros [N, ...], which the model adds to the stream before each layer.
      examples: pytree of arrays [B, ...].
      specs: of the parameters; the stacked ones [N, ...] are those of layers.
      at_once: how many gradients are held in memory side by side, a divisor of B; None: B.
    """
    batch_size = len(jax.tree.leaves(examples)[0])
    at_once = at_once or batch_size
    if batch_size % at_once:
        raise ValueError(f"at_once={at_once} must divide the {batch_size} examples")
    parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), examples)
    of_each = jax.vmap(jax.grad(loss_fn, (0, 1)), (None, None, 0))

    def add(total, part):
        grads, probe_grads = of_each(params, probes, part)
        total = jax.tree.map(lambda t, g: t + jnp.sum(g, axis=0), total, grads)
        return total, (jax.vmap(global_norm)(grads), norm(probe_grads, range(2, 1 + probes.ndim)))

    total, (norms, streams) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    mean = jax.tree.map(lambda g: g / batch_size, total)
    return GradientNorms(
        layers=layer_norms(mean, specs),
        stream=norm(streams, (0, 1)) / batch_size,
        whole=global_norm(mean),
        examples=norms.reshape(batch_size),
    )


def layer_norms(grads: Params, specs: dict[str, Any]) -> Array:
    """f32[N]: for each layer, the norm of the gradient of all its parameters together.

    Args:
      grads: as the parameters. specs: of the parameters.
    """
    flat = trees.flatten(grads)
    stacked = [flat[path] for path, spec in trees.flatten(specs).items() if spec.stacked]
    return norm(jnp.stack([norm(leaf, range(1, leaf.ndim)) for leaf in stacked]), (0,))


def global_norm(grads: Params) -> Array:
    """f32[], the norm of all leaves together."""
    leaves = trees.flatten(grads).values()
    return norm(jnp.stack([norm(leaf, range(leaf.ndim)) for leaf in leaves]), (0,))


def norm(x: Array, axes: Iterable[int]) -> Array:
    """L2 norm over `axes` in float32, without squaring what is very large or very small.

    It is exactly 0 where all entries are 0, and not finite where an entry is not.
    """
    x, axes = x.astype(jnp.float32), tuple(axes)
    largest = jnp.max(jnp.abs(x), axes)
    unit = jnp.where(largest > 0, largest, 1)
    relative = x / jnp.expand_dims(unit, axes)
    return largest * jnp.sqrt(jnp.sum(jnp.square(relative), axes))
