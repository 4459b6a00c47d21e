"""Speculative decoding: a small model drafts tokens, the target checks them in one call.

The texts follow the target's distribution exactly, whatever the draft is; it decides only how many
tokens a call of the target gives.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import ConfigError
from jaxlm.decode.decoder import CHUNK, decoder_of
from jaxlm.decode.filters import SamplingConfig, filter_logits, is_greedy, sample_token
from jaxlm.decode.generate import keys_of_rows, start
from jaxlm.decode.penalties import adjust_logits, seen_in, with_token
from jaxlm.decode.prompts import UNUSED, bucket, pad_prompts, traced_sampling
from jaxlm.models.api import LanguageModel

MOST_DRAFTED = CHUNK // 2  # what a ring can take back, and to spare


class Speculated(NamedTuple):
    """tokens, lengths: as in `Generated`, and what the drafts were worth.

    accepted: i32[B], drafted tokens that the target kept, those behind the row's end included.
    calls: i32[B], of the target, until the row ended; each checked `num_drafted` tokens.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    accepted: np.ndarray
    calls: np.ndarray
    num_drafted: int

    @property
    def acceptance_rate(self) -> float:
        """Share of all drafted tokens that were kept."""
        return float(self.accepted.sum() / (self.calls.sum() * self.num_drafted))

    @property
    def tokens_per_call(self) -> float:
        """New tokens, stop tokens included, for each call of the target; plain decoding has 1."""
        return float((self.tokens != UNUSED).sum() / self.calls.sum())


def acceptance(p: Array, q: Array, drafts: Array) -> Array:
    """Probability with which each draft is kept: min(1, p(x) / q(x)).

    p, q: f32[n, V], of the target and of the draft; drafts: i32[n], drawn from q.
    """
    p, q = (jnp.take_along_axis(each, drafts[:, None], axis=-1)[:, 0] for each in (p, q))
    return jnp.minimum(1.0, p / q)


def residual(p: Array, q: Array) -> Array:
    """The distribution max(p - q, 0), normalised: that of a token in place of a refused one.

    f32[..., V] each; p itself where p and q are equal, and so nothing is ever refused.
    """
    rest = jnp.maximum(p - q, 0.0)
    total = jnp.sum(rest, axis=-1, keepdims=True)
    return jnp.where(total > 0, rest / jnp.where(total > 0, total, 1.0), p)


def verify(key: Array, p: Array, q: Array, drafts: Array) -> tuple[Array, Array]:
    """How many of the drafts are kept, and the token after them, drawn by the target: i32[] each.

    p: f32[n + 1, V], the target's distribution after the text and after each draft.
    q: f32[n, V], those that the drafts i32[n] were drawn from.
    Source: Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative
      Decoding", algorithm 1; Chen et al. 2023, "Accelerating Large Language Model Decoding with
      Speculative Sampling", algorithm 2.
    """
    accept_key, token_key = jax.random.split(key)
    kept = jax.random.uniform(accept_key, drafts.shape) < acceptance(p[:-1], q, drafts)
    count = _leading(kept)
    # After the last draft nothing was proposed, which leaves all of p.
    q = jnp.concatenate([q, jnp.zeros_like(q[:1])])
    token = jax.random.categorical(token_key, jnp.log(residual(p[count], q[count])))
    return count, token.astype(jnp.int32)


def _leading(kept):
    return jnp.sum(jnp.cumprod(kept.astype(jnp.int32)))


def judge(
    keys: Array, target_logits: Array, draft_logits: Array, drafts: Array, sampling: SamplingConfig
) -> tuple[Array, Array]:
    """`verify` for every row, i32[B] each, of the filtered distributions; at temperature 0 argmax.

    keys: [B]; target_logits: f32[B, n + 1, V]; draft_logits: f32[B, n, V]; drafts: i32[B, n].
    """

    def draw():
        p, q = (jax.nn.softmax(filter_logits(x, sampling)) for x in (target_logits, draft_logits))
        return jax.vmap(verify)(keys, p, q, drafts)

    def best():
        tokens = jnp.argmax(target_logits, axis=-1).astype(jnp.int32)
        count = jax.vmap(_leading)(tokens[:, :-1] == drafts)
        return count, jnp.take_along_axis(tokens, count[:, None], axis=1)[:, 0]

    return jax.lax.cond(is_greedy(sampling.temperature), best, draw)


class Rows(NamedTuple):
    """Rows in the middle of decoding. The target has read all of a row's text but its newest token,
    the draft all but its newest or its two newest.

    text: i32[B, T], prompt and what follows it; size: i32[B], its tokens; done: bool[B].
    seen: as in `DecodeState`. accepted, calls: i32[B].
    """

    text: Array
    size: Array
    done: Array
    target: Any
    draft: Any
    seen: Array | None
    accepted: Array
    calls: Array


@functools.partial(jax.jit, static_argnames=("decoders", "num_drafted", "cache_length"))
def _speculate(params, prompts, key, num_tokens, sampling, *, decoders, num_drafted, cache_length):
    """(text, size, stopped, accepted, calls); params and decoders: of target and draft."""
    (target_params, draft_params), (target, draft) = params, decoders
    B, n, T = len(prompts.tokens), num_drafted, cache_length
    row_keys = keys_of_rows(key, B)
    sample = jax.vmap(sample_token, in_axes=(0, 0, None))

    def propose(rows, keys):
        """Drafts i32[B, n], their logits [B, n, V], the ids seen [B, n + 1, V], and the cache."""
        behind = rows.size - rows.draft.length  # 1, or 2 after a call that kept every draft
        places = rows.draft.length[:, None] + jnp.arange(2)
        unread = jnp.take_along_axis(rows.text, jnp.minimum(places, T - 1), axis=1)
        logits, cache = draft.extend(draft_params, unread, rows.draft, lengths=behind)
        logits = jnp.take_along_axis(logits, behind[:, None, None] - 1, axis=1)[:, 0]

        def choose(logits, seen, keys):
            logits = adjust_logits(logits, seen, sampling)
            return sample(logits, keys, sampling), logits

        def again(carry, keys):
            token, seen, cache = carry
            seen = with_token(seen, token)
            logits, cache = draft.extend(draft_params, token[:, None], cache)
            new, logits = choose(logits[:, 0], seen, keys)
            return (new, seen, cache), (new, logits, seen)

        token, logits = choose(logits, rows.seen, keys[:, 0])
        carry = (token, rows.seen, cache)
        (last, seen, cache), later = jax.lax.scan(again, carry, jnp.swapaxes(keys[:, 1:], 0, 1))
        drafts, logits, seens = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[:, None], jnp.swapaxes(rest, 0, 1)], axis=1),
            (token, logits, rows.seen),
            later,
        )
        if (newest := with_token(seen, last)) is not None:
            seens = jnp.concatenate([seens, newest[:, None]], axis=1)
        return drafts, logits, seens, cache

    def unfinished(rows):
        return ~jnp.all(rows.done)

    def body(rows):
        keys = jax.vmap(jax.random.fold_in)(row_keys, rows.size)
        keys = jax.vmap(lambda key: jax.random.split(key, n + 1))(keys)
        drafts, draft_logits, seens, draft_cache = propose(rows, keys[:, :n])
        newest = jnp.take_along_axis(rows.text, rows.size[:, None] - 1, axis=1)
        read = jnp.concatenate([newest, drafts], axis=1)
        logits, target_cache = target.extend(target_params, read, rows.target)
        logits = adjust_logits(logits, seens, sampling)
        count, token = judge(keys[:, n], logits, draft_logits, drafts, sampling)

        places = jnp.arange(n + 1)
        padded = jnp.concatenate([drafts, drafts[:, :1]], axis=1)
        new = jnp.where(places < count[:, None], padded, token[:, None])
        room = prompts.lengths + num_tokens - rows.size
        stops = jnp.any(new[..., None] == prompts.stop_ids, axis=-1)
        ends = jnp.where(stops, places + 1, n + 2).min(axis=1)  # tokens up to the first stop token
        taken = jnp.where(rows.done, 0, jnp.minimum(jnp.minimum(count + 1, room), ends))
        where = jnp.where(places < taken[:, None], rows.size[:, None] + places, T)
        size = rows.size + taken
        drafted = jnp.minimum(size, rows.size + n) - 1  # the draft has not read its last proposal
        drafted = jnp.where(rows.done, rows.draft.length, drafted)
        seen = rows.seen
        if seen is not None:
            seen |= seen_in(new, taken, target.vocab_size)
        return Rows(
            text=rows.text.at[jnp.arange(B)[:, None], where].set(new, mode="drop"),
            size=size,
            done=rows.done | (taken == room) | (taken == ends),
            target=target.take_back(target_cache, size - 1),
            draft=draft.take_back(draft_cache, drafted),
            seen=seen,
            accepted=rows.accepted + jnp.where(rows.done, 0, count),
            calls=rows.calls + ~rows.done,
        )

    state = start(target, target_params, prompts, sampling, T)
    zeros = jnp.zeros(B, jnp.int32)
    rows = Rows(
        text=jnp.pad(prompts.tokens, ((0, 0), (0, T - prompts.tokens.shape[1]))),
        size=prompts.lengths,
        done=zeros > 0,
        target=state.cache,
        draft=start(draft, draft_params, prompts, None, T).cache,
        seen=state.seen,
        accepted=zeros,
        calls=zeros,
    )
    rows = jax.lax.while_loop(unfinished, body, rows)
    last = jnp.take_along_axis(rows.text, rows.size[:, None] - 1, axis=1)
    stopped = jnp.any(last == prompts.stop_ids, axis=1)
    return rows.text, rows.size, stopped, rows.accepted, rows.calls


def speculate(
    model: LanguageModel,
    params: Params,
    draft: LanguageModel,
    draft_params: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    key: Array,
    *,
    num_tokens: int,
    num_drafted: int = 4,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
    **sampling: Any,
) -> Speculated:
    """`generate`, `num_drafted` tokens at a time proposed by `draft` and checked by `model`.

    At temperature 0 the tokens are those of `generate`; above, their distribution is, not the draw
    itself. Temperature and filters apply to both models. Rows go on at their own rates.

    Args:
      draft, draft_params: a model of the same vocabulary.
      The others as for `generate`; max_length is the smaller of the two models'.
    Raises:
      ConfigError: as `generate`; vocabularies of other sizes, a model whose cache takes nothing
        back, num_drafted below 1 or above 64.
    """
    decoders = decoder_of(model), decoder_of(draft)
    if not 1 <= num_drafted <= MOST_DRAFTED:
        raise ConfigError(f"num_drafted={num_drafted} must be in 1..{MOST_DRAFTED}")
    if decoders[0].vocab_size != decoders[1].vocab_size:
        raise ConfigError(
            f"the draft has a vocabulary of {decoders[1].vocab_size}, the model one of "
            f"{decoders[0].vocab_size}; a draft needs the same ids"
        )
    for name, decoder in zip(("model", "draft"), decoders, strict=True):
        if decoder.take_back is None:
            raise ConfigError(f"the {name} cannot take back what it has read, as speculation needs")
    settings = traced_sampling(model, **sampling)
    padded = pad_prompts(
        model, prompts, num_tokens=num_tokens, stop_ids=stop_ids, max_length=max_length
    )
    text, size, stopped, accepted, calls = map(
        np.asarray,
        _speculate(
            (params, draft_params),
            padded,
            key,
            np.int32(num_tokens),
            settings,
            decoders=decoders,
            num_drafted=num_drafted,
            cache_length=bucket(padded.lengths.max() + num_tokens + num_drafted),
        ),
    )
    counts = size - padded.lengths
    tokens = np.full((len(text), num_tokens), UNUSED, np.int32)
    for row, whole, length, count in zip(tokens, text, padded.lengths, counts, strict=True):
        row[:count] = whole[length : length + count]
    return Speculated(tokens, counts - stopped, accepted, calls, num_drafted)
