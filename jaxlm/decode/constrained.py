"""Sampling in which each text must match: what may follow is worked out on the host, step by step.

Every step waits for the host, which needs the token before it can say what may come next; that, and
a mask of V bits a row to the device, is what it costs beside `generate`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import ConfigError
from jaxlm.decode.decoder import decoder_of
from jaxlm.decode.generate import keys_of_rows, start, step
from jaxlm.decode.prompts import UNUSED, bucket, pad_prompts, traced_sampling
from jaxlm.models.api import LanguageModel


class Matcher(Protocol):
    """One text in the making, see `grammars.Matcher`."""

    def allowed(self) -> np.ndarray: ...
    def may_end(self) -> bool: ...
    def read(self, id: int) -> None: ...
    def copy(self) -> "Matcher": ...


class Matched(NamedTuple):
    """tokens, lengths: as in `Generated`. matches: bool[B], whether the text is a whole match.

    A text that is none was broken off: by num_tokens, or where no token could go on, since the
    vocabulary has not the bytes or logit_bias forbids them.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    matches: np.ndarray


_start = functools.partial(jax.jit, static_argnames=("decoder", "cache_length"))(start)
_step = functools.partial(jax.jit, static_argnames="extend", donate_argnames="state")(step)


def generate_matching(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    key: Array,
    matcher: Matcher,
    *,
    num_tokens: int,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
    **sampling: Any,
) -> Matched:
    """`generate` in which what follows each prompt must match.

    A text ends where it matches and a stop token is drawn or nothing can follow; a stop token is
    allowed only there, and not within a text. Each draw is among the allowed tokens, their
    probabilities in the model's own proportions before temperature and filters.

    Args:
      matcher: of `grammars`, at its beginning; it is copied for each row.
      The others as for `generate`.
    Raises:
      ConfigError: as `generate`; no token of the vocabulary can begin a match.
    """
    decoder = decoder_of(model)
    settings = traced_sampling(model, **sampling)
    padded = pad_prompts(
        model, prompts, num_tokens=num_tokens, stop_ids=stop_ids, max_length=max_length
    )
    B, stops = len(padded.tokens), np.isin(np.arange(decoder.vocab_size), stop_ids)
    barred = np.zeros(decoder.vocab_size, bool)
    if settings.logit_bias is not None:
        barred = np.isneginf(settings.logit_bias)
    cache_length = bucket(padded.lengths.max() + num_tokens - 1)
    row_keys = keys_of_rows(key, B)
    rows = [matcher.copy() for _ in range(B)]
    tokens, lengths = np.full((B, num_tokens), UNUSED, np.int32), np.zeros(B, np.int32)
    done, state = np.zeros(B, bool), None
    for i in range(num_tokens):
        allowed = np.ones((B, decoder.vocab_size), bool)  # of rows that are done: anything
        for b in np.flatnonzero(~done):
            allowed[b] = np.where(stops, rows[b].may_end(), rows[b].allowed()) & ~barred
            done[b] = not (allowed[b] & ~stops).any()
            allowed[b] |= done[b]
            if done[b] and i == 0 and not rows[b].may_end():
                raise ConfigError("no token of this vocabulary can begin a text that matches")
        if done.all():
            break
        if state is None:
            state = _start(decoder, params, padded, settings, cache_length)
        drawn, state = _step(decoder.extend, params, state, row_keys, settings, allowed)
        for b, token in zip(np.flatnonzero(~done), np.asarray(drawn)[~done], strict=True):
            tokens[b, i] = token
            if stops[token]:
                done[b] = True
            else:
                rows[b].read(token)
                lengths[b] += 1
    return Matched(tokens, lengths, np.array([row.may_end() for row in rows]))
