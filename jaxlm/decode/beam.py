"""Beam search: the likeliest texts, looked for among a few prefixes at a time."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.decode.decoder import decoder_of
from jaxlm.decode.generate import start
from jaxlm.decode.prompts import UNUSED, bucket, pad_prompts
from jaxlm.models.api import LanguageModel


class Beams(NamedTuple):
    """The texts found for each prompt, the best first, without the prompt, on the host.

    tokens: i32[B, W, num_tokens]. lengths: i32[B, W]; both as in `Generated`.
    scores: f32[B, W], log-probability over n^length_penalty, n the tokens of a text with its stop
      token; -inf in places for which there was no text.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


class Hypotheses(NamedTuple):
    """W texts a row in the making; log_probs is -inf where there is none.

    tokens: i32[B, W, T]; counts: i32[B, W], of their tokens; ended: bool[B, W].
    """

    tokens: jax.Array
    counts: jax.Array
    log_probs: jax.Array
    ended: jax.Array


def expand(
    beams: Hypotheses, log_probs: jax.Array, stop_ids: jax.Array, i: jax.Array
) -> tuple[Hypotheses, jax.Array, jax.Array]:
    """The W best of the ended texts, which keep their places, and all continuations of the others.

    Args:
      log_probs: f32[B, W, V] of the next token of each text. i: how many tokens were written.
    Returns:
      the texts, and for each the place i32[B, W] that it came from and its newest token i32[B, W].
    """
    B, W, V = log_probs.shape
    total = beams.log_probs[..., None] + log_probs
    itself = jnp.where(jnp.arange(V) == 0, jnp.inf, -jnp.inf)  # an ended text, once, before all
    total = jnp.where(beams.ended[..., None], itself, total)
    best, at = jax.lax.top_k(total.reshape(B, W * V), W)
    origin, token = at // V, at % V
    old = jax.tree.map(lambda x: take_places(x, origin), beams)
    kept, nothing = best == jnp.inf, best == -jnp.inf
    chosen = Hypotheses(
        tokens=old.tokens.at[:, :, i].set(jnp.where(kept, UNUSED, token)),
        counts=old.counts + ~kept,
        log_probs=jnp.where(kept, old.log_probs, best),
        # A place without a text does not end, or it would keep that place.
        ended=kept | (jnp.any(token[..., None] == stop_ids, axis=-1) & ~nothing),
    )
    return chosen, origin, token


def take_places(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [B, W, ...] -> [B, W, ...], each row's entries in the order of places i32[B, W]."""
    return jax.vmap(lambda row, at: row[at])(x, places)


@functools.partial(jax.jit, static_argnames=("decoder", "width", "cache_length"))
def _search(params, prompts, num_tokens, *, decoder, width, cache_length):
    B, W = len(prompts.tokens), width
    state = start(decoder, params, prompts, None, cache_length)
    cache = jax.tree.map(lambda x: jnp.repeat(x, W, axis=0), state.cache)
    one = jnp.where(jnp.arange(W) == 0, 0.0, -jnp.inf)  # W equal texts would stay equal
    beams = Hypotheses(
        tokens=jnp.full((B, W, cache_length), UNUSED, jnp.int32),
        counts=jnp.zeros((B, W), jnp.int32),
        log_probs=jnp.broadcast_to(one, (B, W)),
        ended=jnp.zeros((B, W), bool),
    )

    def unfinished(loop):
        i, beams, _, _ = loop
        return (i < num_tokens) & jnp.any(~beams.ended & (beams.log_probs > -jnp.inf))

    def body(loop):
        i, beams, newest, cache = loop
        logits, cache = decoder.extend(params, newest[:, None], cache)
        log_probs = jax.nn.log_softmax(logits[:, 0]).reshape(B, W, -1)
        beams, origin, token = expand(beams, log_probs, prompts.stop_ids, i)
        rows = (jnp.arange(B)[:, None] * W + origin).ravel()
        return i + 1, beams, token.ravel(), jax.tree.map(lambda x: x[rows], cache)

    first = (0, beams, jnp.repeat(state.newest, W), cache)
    return jax.lax.while_loop(unfinished, body, first)[1]


def beam_search(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    num_tokens: int,
    width: int,
    length_penalty: float = 1.0,
    stop_ids: Sequence[int] = (),
    max_length: int | None = None,
) -> Beams:
    """The likeliest continuations of each prompt that a beam of `width` texts finds.

    At each step the `width` most probable continuations of the texts stay. One that draws a stop
    token ends and keeps its place, so the beam narrows until all have ended or have `num_tokens`.
    Their order is by score = log p(text) / n^length_penalty, which takes no part in the search.
    Width 1 is greedy decoding; a width of all texts there are finds the best one.

    Args:
      length_penalty: 0 orders by probability, 1 by that of a token, and more prefers longer texts.
      The others as for `generate`.
    Raises:
      ConfigError: as `generate`; width below 1, a length_penalty that is not finite.
    Source: Sutskever, Vinyals and Le 2014, "Sequence to Sequence Learning with Neural Networks",
      section 3.2; the score is that of Hugging Face.
    """
    if width < 1:
        raise ConfigError(f"width={width} must be at least 1")
    if not np.isfinite(length_penalty):
        raise ConfigError(f"length_penalty={length_penalty} must be finite")
    padded = pad_prompts(
        model, prompts, num_tokens=num_tokens, stop_ids=stop_ids, max_length=max_length
    )
    beams = _search(
        params,
        padded,
        np.int32(num_tokens),
        decoder=decoder_of(model),
        width=width,
        cache_length=bucket(padded.lengths.max() + num_tokens - 1),
    )
    tokens, counts, log_probs, ended = map(np.asarray, beams)
    scores = log_probs / counts.astype(np.float32) ** length_penalty
    order = np.argsort(-scores, axis=1, kind="stable")
    tokens, counts, scores, ended = (
        np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)
        for x in (tokens[:, :, :num_tokens], counts, scores, ended)
    )
    exists = scores > -np.inf
    tokens = np.where(exists[..., None], tokens, UNUSED)
    return Beams(tokens, np.where(exists, counts - ended, 0), scores.astype(np.float32))
