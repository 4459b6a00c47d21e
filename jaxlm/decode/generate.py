"""Tokens from a model and its cache: prefill, step, and a loop compiled once for many lengths."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.decode.decoder import CHUNK, Decoder, decoder_of
from jaxlm.decode.filters import SamplingConfig, sample_token
from jaxlm.decode.penalties import adjust_logits, seen_in, with_token
from jaxlm.decode.prompts import UNUSED, Prompts, bucket, pad_prompts, traced_sampling
from jaxlm.models.api import LanguageModel


class Generated(NamedTuple):
    """New tokens, without the prompt, on the host.

    tokens: i32[B, num_tokens]; row b's are tokens[b, : lengths[b]]. Where a stop token ended the
      row it stands at tokens[b, lengths[b]], not counted. Every later place holds -1.
    lengths: i32[B]; below num_tokens exactly where a stop token ended the row.
    """

    tokens: Array | np.ndarray
    lengths: Array | np.ndarray


class DecodeState(NamedTuple):
    """Rows in the middle of decoding: the cache holds all tokens of a row but its newest."""

    newest: Array | np.ndarray  # i32[B]
    cache: Any
    seen: Any  # bool[B, V], ids in the text so far; None where nothing asks


def start(
    decoder: Decoder,
    params: Params,
    prompts: Prompts,
    sampling: SamplingConfig | None,
    cache_length: int,
) -> DecodeState:
    """Reads the prompts into a new cache. sampling: None where no token will be drawn.

    A model with a window gets a ring of `Decoder.cache_entries`, and long prompts in chunks.
    """
    # All but each row's last token: `step` reads that one, so it needs no logits here.
    tokens, lengths = prompts.tokens, prompts.lengths
    B, S = tokens.shape
    size = decoder.cache_entries(cache_length)
    cache = decoder.init_cache(B, size)
    if size == cache_length or S <= CHUNK:
        _, cache = decoder.extend(params, tokens, cache, lengths=lengths - 1)
    else:

        def read(i, cache):
            chunk = jax.lax.dynamic_slice_in_dim(tokens, i * CHUNK, CHUNK, axis=1)
            rest = jnp.clip(lengths - 1 - i * CHUNK, 0, CHUNK)
            return decoder.extend(params, chunk, cache, lengths=rest)[1]

        num_chunks = (jnp.max(lengths) - 1 + CHUNK - 1) // CHUNK
        cache = jax.lax.fori_loop(0, num_chunks, read, cache)
    newest = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
    seen = None
    if sampling is not None and sampling.repetition_penalty is not None:
        seen = seen_in(jnp.asarray(tokens), jnp.asarray(lengths), decoder.vocab_size)
    return DecodeState(newest, cache, seen)


def step(
    extend: Callable,
    params: Params,
    state: DecodeState,
    row_keys: Array,
    sampling: SamplingConfig,
    allowed: Array | None = None,
) -> tuple[Array, DecodeState]:
    """Draws the next token of each row, i32[B].

    The token at position t of row b is drawn with fold_in(row_keys[b], t): it depends neither on
    the other rows nor on where the prompt ended. allowed: bool[B, V], ids that may be drawn.
    """
    logits, cache = extend(params, state.newest[:, None], state.cache)
    logits = adjust_logits(logits[:, 0], state.seen, sampling)
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in)(row_keys, cache.length)
    tokens = jax.vmap(sample_token, in_axes=(0, 0, None))(logits, keys, sampling)
    return tokens, DecodeState(tokens, cache, with_token(state.seen, tokens))


def keys_of_rows(key: Array, num_rows: int) -> Array:
    """A key for each row, fold_in(key, b)."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_rows))


@functools.partial(jax.jit, static_argnames=("decoder", "cache_length"))
def _generate(params, prompts, key, num_tokens, sampling, *, decoder, cache_length):
    """`Generated`, its tokens padded to i32[B, cache_length]; only the keywords are static."""
    B = len(prompts.tokens)
    row_keys = keys_of_rows(key, B)

    def unfinished(loop):
        i, _, _, done, _ = loop
        return (i < num_tokens) & ~jnp.all(done)

    def body(loop):
        i, tokens, counts, done, state = loop
        token, state = step(decoder.extend, params, state, row_keys, sampling)
        tokens = tokens.at[:, i].set(jnp.where(done, UNUSED, token))
        done |= jnp.any(token[:, None] == prompts.stop_ids, axis=1)
        return i + 1, tokens, counts + ~done, done, state

    state = start(decoder, params, prompts, sampling, cache_length)
    tokens = jnp.full((B, cache_length), UNUSED, jnp.int32)
    first = (0, tokens, jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), state)
    _, tokens, counts, _, _ = jax.lax.while_loop(unfinished, body, first)
    return Generated(tokens, counts)


def generate(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    key: Array,
    *,
    num_tokens: int,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
    **sampling: Any,
) -> Generated:
    """Continues each prompt by up to `num_tokens` tokens.

    What a row gets does not depend on the rows beside it, on padding, or on how a text was split
    into prompt and continuation, up to the rounding of the model's own sums. One program serves
    all calls with one model, batch size and set of filters whose longest prompt and total length
    round up to the same powers of two; `params` and every number may change. Programs belong to
    the functions of `model`: build it once and keep it.

    Args:
      model: its cache has a `length` i32[B], the tokens read of each row.
      params: of the model; for a large one `jax.jit(model.decoding_params)(params)` is faster.
      prompts: B sequences of ids, lengths may differ, none empty.
      key: of jax.random, consumed; row b draws with fold_in(key, b).
      stop_ids: a row ends when it draws one of these.
      max_length: positions that the model has, where it has a table of them
        (`context_length` with positions=learned); None: no limit.
      sampling: fields of `SamplingConfig`, logit_bias as {id: bias}; temperature 0 is greedy.
    Raises:
      ConfigError: no or empty prompts, an id outside the vocabulary, a number out of range, or
        more positions than max_length.
    """
    settings = traced_sampling(model, **sampling)
    padded = pad_prompts(
        model, prompts, num_tokens=num_tokens, stop_ids=stop_ids, max_length=max_length
    )
    tokens, counts = _generate(
        params,
        padded,
        key,
        np.int32(num_tokens),
        settings,
        decoder=decoder_of(model),
        cache_length=bucket(padded.lengths.max() + num_tokens - 1),
    )
    return Generated(np.asarray(tokens)[:, :num_tokens], np.asarray(counts))
