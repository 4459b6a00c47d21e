"""From next-token logits to a token: temperature, top-k, top-p and min-p.

The numbers may be traced: one compiled sampler serves every value, and a filter that is off costs
nothing. Nothing is sorted: the cut of top-k and of top-p is found bit by bit in 32 passes over the
vocabulary, which costs a fraction of a sort.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.core.config import ConfigError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a token is drawn. A filter that is None is off and left out of the program.

    temperature: at least 0; 0 is greedy. top_k: at least 1. top_p: in (0, 1]. min_p: in [0, 1].
    logit_bias: f32[V], added to the logits. repetition_penalty: above 0, of every token in the
    prompt or generated; 1 changes nothing. Both come before the filters, see `penalties`.
    A pytree, so that inside a program the numbers may be traced.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    logit_bias: Array | None = None
    repetition_penalty: float | None = None

    def __post_init__(self):
        """Checks plain numbers; traced ones were checked before they were traced."""
        for name, fits, expected in (
            ("temperature", lambda t: 0 <= t < math.inf, "at least 0 (0 is greedy) and finite"),
            ("top_k", lambda k: k >= 1 and k == int(k), "a whole number from 1 on, or none"),
            ("top_p", lambda p: 0 < p <= 1, "above 0 and at most 1, or none"),
            ("min_p", lambda p: 0 <= p <= 1, "in [0, 1], or none"),
            ("repetition_penalty", lambda r: 0 < r < math.inf, "above 0 and finite, or none"),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and not fits(value):
                raise ConfigError(f"{name}={value} must be {expected}")


def sample_token(logits: Array, key: Array, sampling: SamplingConfig) -> Array:
    """Draws ids i32[...] from logits f32[..., V] after `filter_logits`; consumes `key`.

    At temperature 0 this is the argmax, ties to the lowest id, whatever the key.
    """

    def draw():
        return jax.random.categorical(key, filter_logits(logits, sampling)).astype(jnp.int32)

    def best():
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    # The noise of a draw costs as much as a small model's layers, and the greedy need none.
    return jax.lax.cond(is_greedy(sampling.temperature), best, draw)


def filter_logits(logits: Array, sampling: SamplingConfig) -> Array:
    """Applies temperature, top_k, top_p and min_p, in this order (that of Hugging Face).

    Each filter sees the distribution that the earlier ones left, renormalised.

    Args:
      logits: f32[..., V]. sampling: its numbers may be traced.
    Returns:
      f32[..., V], -inf for the tokens that are dropped; at least one stays.
    """
    logits = temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = min_p(logits, sampling.min_p)
    return logits


def temperature(logits: Array, t: Array | float) -> Array:
    """Logits divided by t, up to a constant: the largest becomes 0.

    t = 0 gives the limit, 0 for the argmax (the lowest id among ties) and -inf elsewhere.
    logits: f32[..., V]; t: f32[], at least 0.
    Source: Ackley, Hinton and Sejnowski 1985, "A Learning Algorithm for Boltzmann Machines".
    """
    t = jnp.asarray(t, jnp.float32)
    zero = is_greedy(t)
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    greedy = jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, -jnp.inf)
    # The shift keeps logits / t from overflowing upwards, which would leave inf - inf.
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(zero, greedy, shifted / jnp.where(zero, 1.0, t))


def is_greedy(t: Array | float) -> Any:
    """Whether a temperature f32[] counts as 0: bool[]."""
    return t < jnp.finfo(jnp.float32).tiny  # CPUs may flush smaller numbers to 0


def top_k(logits: Array, k: Array | int) -> Array:
    """Keeps the k largest logits, ties to the lowest ids; the rest become -inf.

    Unlike implementations that keep all that tie with the k-th, exactly k stay (all, where k is V
    or more), so that k = 1 is greedy.
    logits: f32[..., V]; k: a whole number [], at least 1, may be traced.
    Source: Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation", section 5.4.
    """
    k = jnp.minimum(jnp.asarray(k, jnp.float32), logits.shape[-1]).astype(jnp.int32)
    keep = _largest(logits, jnp.ones(logits.shape, jnp.int32), k)
    return jnp.where(keep, logits, -jnp.inf)


def top_p(logits: Array, p: Array | float) -> Array:
    """Keeps the smallest set of most probable tokens whose probabilities sum to at least p.

    Ties go to the lowest ids; one token always stays; p = 1 keeps all.
    logits: f32[..., V]; p: f32[], may be traced.
    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    p = jnp.asarray(p, jnp.float32)
    # A rounded sum of all probabilities may stay below 1 or reach it too soon.
    target = jnp.where(p < 1, jnp.maximum(p, jnp.finfo(jnp.float32).tiny), jnp.inf)
    keep = _largest(logits, jax.nn.softmax(logits, axis=-1), target)
    return jnp.where(keep, logits, -jnp.inf)


def min_p(logits: Array, p: Array | float) -> Array:
    """Keeps tokens at least p times as probable as the most probable one.

    logits: f32[..., V]; p: f32[] in [0, 1], may be traced.
    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
      Outputs", section 3.
    """
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.asarray(p, jnp.float32))
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _largest(logits: Array, weights: Array, target: Array) -> Array:
    """The fewest of the largest logits whose weights sum to at least `target`: bool[..., V].

    Ties go to the lowest ids; all are kept where the weights never reach the target.
    weights: [..., V], equal where the logits are, not negative; target: [] above 0, same dtype.
    """
    order = _sortable(logits)

    def weight_from(threshold):
        return jnp.sum(jnp.where(order >= threshold, weights, 0), axis=-1, keepdims=True)

    def set_bit(i, threshold):
        higher = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(weight_from(higher) >= target, higher, threshold)

    # The highest threshold that still reaches the target, its bits from the top down.
    threshold = jax.lax.fori_loop(0, 32, set_bit, jnp.zeros((*logits.shape[:-1], 1), jnp.uint32))
    above, tied = order > threshold, order == threshold
    tied_weights = jnp.where(tied, weights, 0)
    before = jnp.cumsum(tied_weights, axis=-1) - tied_weights
    missing = target - jnp.sum(jnp.where(above, weights, 0), axis=-1, keepdims=True)
    return above | (tied & (before < missing))


def _sortable(x: Array) -> Array:
    """uint32 in the order of the floats x: negative numbers have their bits turned over."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32)  # -0 becomes 0
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))
