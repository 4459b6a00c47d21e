"""Cross-entropy from hidden states, a part of the vocabulary at a time.

The logits of all tokens and ids, f32[..., V], are never held: forward and backward compute those of
`chunk` ids after those of the ids before. What is saved is the log of the softmax denominator.

Source: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", section 4, as
plain products.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


class TokenScores(NamedTuple):
    """Of each token, f32[...]: -log p(target), log of the softmax denominator, mean logit."""

    nll: Array
    log_z: Array
    mean_logit: Array


def chunked_cross_entropy(
    logits_of: Callable[[Any, Array], Array],
    head: Any,
    axes: Any,
    x: Array,
    targets: Array,
    *,
    chunk: int,
) -> TokenScores:
    """What a softmax over the whole vocabulary says of the targets.

    Args:
      logits_of: (head with only some ids, x) -> f32[..., number of those ids]. A logit may depend
        on nothing but x and the head's entries for its own id.
      head: pytree of arrays with an axis over the V ids each.
      axes: a pytree like `head` of ints: which axis that is.
      x: [..., D]; targets: i32[...].
      chunk: ids at a time; at most V, which it need not divide.
    """
    num_ids = {w.shape[axis] for w, axis in zip(*map(jax.tree.leaves, (head, axes)), strict=True)}
    if len(num_ids) != 1:
        raise ValueError(f"the head's vocabulary axes differ in size: {sorted(num_ids)}")
    [vocab_size] = num_ids
    cuts = _Cuts(tuple(jax.tree.leaves(axes)), vocab_size, min(chunk, vocab_size))
    return TokenScores(*cast(tuple, _scores(head, x, targets, logits_of, cuts)))


class _Cuts(NamedTuple):
    """axes: of the head's leaves. The last chunk ends at the last id and may overlap the one
    before, whose ids it then leaves out."""

    axes: tuple[int, ...]
    vocab_size: int
    chunk: int

    @property
    def number(self) -> int:
        return -(-self.vocab_size // self.chunk)

    def start(self, i: Array) -> Array:
        return jnp.minimum(i * self.chunk, self.vocab_size - self.chunk)

    def take(self, head: Any, start: Array) -> Any:
        leaves, tree = jax.tree.flatten(head)
        return tree.unflatten(
            jax.lax.dynamic_slice_in_dim(w, start, self.chunk, axis)
            for w, axis in zip(leaves, self.axes, strict=True)
        )

    def add(self, head: Any, part: Any, start: Array) -> Any:
        """`head` with `part` added to the ids from `start` on."""
        leaves, tree = jax.tree.flatten(head)
        return tree.unflatten(
            jax.lax.dynamic_update_slice_in_dim(w, old + new, start, axis)
            for w, old, new, axis in zip(
                leaves,
                jax.tree.leaves(self.take(head, start)),
                jax.tree.leaves(part),
                self.axes,
                strict=True,
            )
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _scores(head, x, targets, logits_of, cuts):
    def add_chunk(carry, i):
        top, total, picked, summed = carry
        start = cuts.start(i)
        logits = logits_of(cuts.take(head, start), x).astype(jnp.float32)
        new, at = _which(targets, i, start, cuts)
        new_top = jnp.maximum(top, jnp.max(jnp.where(new, logits, -jnp.inf), axis=-1))
        weights = jnp.where(new, jnp.exp(logits - new_top[..., None]), 0)
        hit = jnp.take_along_axis(logits, jnp.clip(at, 0, cuts.chunk - 1)[..., None], axis=-1)
        return (
            new_top,
            total * jnp.exp(top - new_top) + jnp.sum(weights, axis=-1),
            jnp.where((at >= 0) & (at < cuts.chunk), hit[..., 0], picked),
            summed + jnp.sum(jnp.where(new, logits, 0), axis=-1),
        ), None

    zeros = jnp.zeros(targets.shape, jnp.float32)
    lowest = jnp.full(targets.shape, jnp.finfo(jnp.float32).min)
    (top, total, picked, summed), _ = jax.lax.scan(
        add_chunk, (lowest, zeros, zeros, zeros), jnp.arange(cuts.number)
    )
    log_z = top + jnp.log(total)
    return log_z - picked, log_z, summed / cuts.vocab_size


def _which(targets, i, start, cuts):
    """Which columns of chunk i are not in the one before, bool[chunk]; each target's column."""
    return jnp.arange(cuts.chunk) >= i * cuts.chunk - start, targets - start


def _save(head, x, targets, logits_of, cuts):
    scores = cast(tuple, _scores(head, x, targets, logits_of, cuts))
    return scores, (head, x, targets, scores[1])


def _backward(logits_of, cuts, saved, cotangents):
    head, x, targets, log_z = saved
    d_nll, d_log_z, d_mean = cotangents

    def add_chunk(carry, i):
        d_head, dx = carry
        start = cuts.start(i)
        logits, pull = jax.vjp(logits_of, cuts.take(head, start), x)
        new, at = _which(targets, i, start, cuts)
        p = jnp.exp(logits.astype(jnp.float32) - log_z[..., None])
        d_logits = (d_nll + d_log_z)[..., None] * p + (d_mean / cuts.vocab_size)[..., None]
        d_logits -= jnp.where(jnp.arange(cuts.chunk) == at[..., None], d_nll[..., None], 0)
        part, more = pull(jnp.where(new, d_logits, 0).astype(logits.dtype))
        return (cuts.add(d_head, part, start), dx + more.astype(jnp.float32)), None

    zeros = (jax.tree.map(jnp.zeros_like, head), jnp.zeros(x.shape, jnp.float32))
    (d_head, dx), _ = jax.lax.scan(add_chunk, zeros, jnp.arange(cuts.number))
    return d_head, dx.astype(x.dtype), None


_scores.defvjp(_save, _backward)
