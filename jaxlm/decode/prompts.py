"""What the caller gives, checked and padded to shapes that many calls share."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.decode.decoder import vocab_size
from jaxlm.decode.filters import SamplingConfig
from jaxlm.decode.penalties import bias_vector
from jaxlm.models.api import LanguageModel

UNUSED = -1  # fills the places behind a row's last token; no token has this id
SMALLEST_BUCKET = 16


class Prompts(NamedTuple):
    """tokens: i32[B, S], padded on the right; lengths: i32[B]; stop_ids: i32[n], padded by -1."""

    tokens: np.ndarray
    lengths: np.ndarray
    stop_ids: np.ndarray


def pad_prompts(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    num_tokens: int,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
) -> Prompts:
    """Arguments as for `generate`, which names what is refused with ConfigError."""
    rows = [np.asarray(prompt, np.int64) for prompt in prompts]
    _check(model, rows, stop_ids, num_tokens, max_length)
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), bucket(lengths.max())), np.int32)
    for row, prompt in zip(tokens, rows, strict=True):
        row[: len(prompt)] = prompt
    stops = np.full(bucket(len(stop_ids)), UNUSED, np.int32)
    stops[: len(stop_ids)] = stop_ids
    return Prompts(tokens, lengths, stops)


def traced_sampling(
    model: LanguageModel, *, logit_bias: Mapping[int, float] | None = None, **numbers: Any
) -> SamplingConfig:
    """A checked SamplingConfig of float32: were 1 and 1.0 to differ, they would compile apart."""
    if logit_bias is not None:
        numbers["logit_bias"] = bias_vector(logit_bias, vocab_size(model))
    return jax.tree.map(np.float32, SamplingConfig(**numbers))


def bucket(length: int) -> int:
    """The power of two that holds `length`, so that many lengths share a program."""
    return max(SMALLEST_BUCKET, 1 << int(length - 1).bit_length())


def _check(model, rows, stop_ids, num_tokens, max_length):
    if not rows:
        raise ConfigError("prompts: expected at least one")
    if num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens} must be at least 1")
    for b, row in enumerate(rows):
        if not row.size:
            raise ConfigError(f"prompt {b} is empty; a prompt needs at least one token")
    V = vocab_size(model)
    for name, ids in (("prompts", np.concatenate(rows)), ("stop_ids", np.asarray(stop_ids))):
        outside = ids[(ids < 0) | (ids >= V)]
        if outside.size:
            raise ConfigError(f"{name}: id {outside[0]} is outside the vocabulary of {V}")
    longest = max(map(len, rows))
    # The last token is drawn but never read, so it takes no position.
    if max_length is not None and longest + num_tokens - 1 > max_length:
        raise ConfigError(
            f"a prompt of {longest} tokens continued by num_tokens={num_tokens} needs "
            f"{longest + num_tokens - 1} positions, the model has {max_length}; "
            "shorten the prompt or lower num_tokens"
        )
