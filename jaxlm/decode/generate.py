"""Tokens from a model and its cache: prefill, step, and a loop compiled once for many lengths."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import ConfigError
from jaxlm.decode.filters import SamplingConfig, sample_token
from jaxlm.models.api import LanguageModel

UNUSED = -1  # fills the places behind a row's last token; no token has this id
SMALLEST_BUCKET = 16


class Generated(NamedTuple):
    """New tokens, without the prompt, on the host.

    tokens: i32[B, num_tokens]; row b's are tokens[b, : lengths[b]]. Where a stop token ended the
      row it stands at tokens[b, lengths[b]], not counted. Every later place holds -1.
    lengths: i32[B]; below num_tokens exactly where a stop token ended the row.
    """

    tokens: np.ndarray
    lengths: np.ndarray


class DecodeState(NamedTuple):
    """Rows in the middle of decoding: the cache holds all tokens of a row but its newest."""

    newest: Array  # i32[B]
    cache: Any


def prefill(
    extend: Callable, params: Params, prompts: Array, lengths: Array, cache: Any
) -> DecodeState:
    """Reads prompts i32[B, S], padded on the right, into an empty cache.

    extend: of the LanguageModel. lengths: i32[B], of each prompt, at least 1.
    """
    # All but each row's last token: `step` reads that one, so it needs no logits here.
    _, cache = extend(params, prompts, cache, lengths=lengths - 1)
    newest = jnp.take_along_axis(prompts, lengths[:, None] - 1, axis=1)[:, 0]
    return DecodeState(newest, cache)


def step(
    extend: Callable,
    params: Params,
    state: DecodeState,
    row_keys: Array,
    sampling: SamplingConfig,
) -> tuple[Array, DecodeState]:
    """Draws the next token of each row, i32[B].

    The token at position t of row b is drawn with fold_in(row_keys[b], t): it depends neither on
    the other rows nor on where the prompt ended.
    """
    logits, cache = extend(params, state.newest[:, None], state.cache)
    keys = jax.vmap(jax.random.fold_in)(row_keys, cache.length)
    tokens = jax.vmap(sample_token, in_axes=(0, 0, None))(logits[:, 0], keys, sampling)
    return tokens, DecodeState(tokens, cache)


@functools.partial(jax.jit, static_argnames=("init_cache", "extend", "cache_length"))
def _generate(
    params,
    prompts,
    lengths,
    key,
    num_tokens,
    sampling,
    stop_ids,
    *,
    init_cache,
    extend,
    cache_length,
):
    """`Generated`, its tokens padded to i32[B, cache_length]; only the keywords are static."""
    B = len(prompts)
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(B))

    def unfinished(loop):
        i, _, _, done, _ = loop
        return (i < num_tokens) & ~jnp.all(done)

    def body(loop):
        i, tokens, counts, done, state = loop
        token, state = step(extend, params, state, row_keys, sampling)
        tokens = tokens.at[:, i].set(jnp.where(done, UNUSED, token))
        done |= jnp.any(token[:, None] == stop_ids, axis=1)
        return i + 1, tokens, counts + ~done, done, state

    state = prefill(extend, params, prompts, lengths, init_cache(B, cache_length))
    tokens = jnp.full((B, cache_length), UNUSED, jnp.int32)
    start = (0, tokens, jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), state)
    _, tokens, counts, _, _ = jax.lax.while_loop(unfinished, body, start)
    return Generated(tokens, counts)


def generate(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: Array,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
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
      temperature, top_k, top_p, min_p: see `SamplingConfig`; temperature 0 is greedy.
      stop_ids: a row ends when it draws one of these.
      max_length: positions that the model has, where it has a table of them
        (`context_length` with positions=learned); None: no limit.
    Raises:
      ConfigError: no or empty prompts, an id outside the vocabulary, a number out of range, or
        more positions than max_length.
    """
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    sampling = jax.tree.map(np.float32, sampling)  # one dtype, or 1 and 1.0 would compile apart
    rows = [np.asarray(prompt, np.int64) for prompt in prompts]
    _check(model, rows, stop_ids, num_tokens, max_length)
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), _bucket(lengths.max())), np.int32)
    for row, prompt in zip(padded, rows, strict=True):
        row[: len(prompt)] = prompt
    stops = np.full(_bucket(len(stop_ids)), UNUSED, np.int32)
    stops[: len(stop_ids)] = stop_ids
    tokens, counts = _generate(
        params,
        padded,
        lengths,
        key,
        np.int32(num_tokens),
        sampling,
        stops,
        init_cache=model.init_cache,
        extend=model.extend,
        cache_length=_bucket(lengths.max() + num_tokens - 1),
    )
    return Generated(np.asarray(tokens)[:, :num_tokens], np.asarray(counts))


def make_generator(
    model: LanguageModel, *, max_length: int | None = None
) -> Callable[..., Generated]:
    """`generate` for one model: (params, prompts, key, *, num_tokens, ...) -> Generated."""
    return functools.partial(generate, model, max_length=max_length)


def _check(model, rows, stop_ids, num_tokens, max_length):
    if not rows:
        raise ConfigError("prompts: expected at least one")
    if num_tokens < 1:
        raise ConfigError(f"num_tokens={num_tokens} must be at least 1")
    for b, row in enumerate(rows):
        if not row.size:
            raise ConfigError(f"prompt {b} is empty; a prompt needs at least one token")
    V = _vocab_size(model)
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


def _vocab_size(model):
    specs = trees.flatten(model.specs).values()
    return next(s.shape[s.axes.index("vocab")] for s in specs if "vocab" in s.axes)


def _bucket(length):
    """The power of two that holds `length`, so that many lengths share a program."""
    return max(SMALLEST_BUCKET, 1 << int(length - 1).bit_length())
