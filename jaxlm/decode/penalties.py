"""What changes the logits themselves, before any filter: a bias, and a penalty on repetition."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array
from jaxlm.core.config import ConfigError
from jaxlm.decode.filters import SamplingConfig


def adjust_logits(logits: Array, seen: Array | None, sampling: SamplingConfig) -> Array:
    """Adds the bias, then penalises what was seen (the order of Hugging Face).

    Args:
      logits: f32[..., V]. seen: bool[..., V], see `seen_in`; None where there is no penalty.
    """
    if sampling.logit_bias is not None:
        logits = logits + sampling.logit_bias
    if sampling.repetition_penalty is not None and seen is not None:
        logits = repetition_penalty(logits, seen, sampling.repetition_penalty)
    return logits


def repetition_penalty(logits: Array, seen: Array, penalty: Array | float) -> Array:
    """Logits of seen tokens divided by the penalty where positive, multiplied where negative.

    logits: f32[..., V]; seen: bool[..., V]; penalty: f32[] above 0, 1 changes nothing.
    Source: Keskar et al. 2019, "CTRL", section 4.1, with Hugging Face's care for negative logits.
    """
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, penalised, logits)


def seen_in(tokens: Array, lengths: Array, vocab_size: int) -> Array:
    """Which ids stand among the first lengths[b] of each row: bool[B, V].

    tokens: i32[B, S]; lengths: i32[B].
    """
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
    rows = jnp.arange(len(tokens))[:, None]
    # Padding is sent to an id beyond the vocabulary, where a write is dropped.
    places = jnp.where(real, tokens, vocab_size)
    return jnp.zeros((len(tokens), vocab_size), bool).at[rows, places].set(True, mode="drop")


def with_token(seen: Array | None, token: Array) -> Array | None:
    """`seen` bool[B, V] and one more token of each row, i32[B]."""
    return None if seen is None else seen.at[jnp.arange(len(token)), token].set(True)


def bias_vector(bias: Mapping[int, float], vocab_size: int) -> np.ndarray:
    """f32[V] from {id: bias}; -inf forbids an id.

    Raises:
      ConfigError: an id outside the vocabulary, a bias of nan or inf, or nothing left to draw.
    """
    dense = np.zeros(vocab_size, np.float32)
    for id, value in bias.items():
        if not 0 <= id < vocab_size:
            raise ConfigError(f"logit_bias: id {id} is outside the vocabulary of {vocab_size}")
        if not value < np.inf:
            raise ConfigError(f"logit_bias: {id}:{value} must be a number below inf")
        dense[id] = value
    if np.all(dense == -np.inf):
        raise ConfigError("logit_bias: forbids every id; leave at least one")
    return dense
