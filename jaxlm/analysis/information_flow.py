"""Which tokens a prediction depends on, by differentiation: the proof that a model is causal.

The text of the proof is its own index: the token at place n has id n. So a row says itself where
each of its tokens and targets comes from, and what a prediction may read follows from the text
alone, not from the masks that are on trial. What may not be read must have a derivative of exactly
zero; what may be read, one that is not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ones, path_key
from jaxlm.data.batches import Batch, Split, batch_at, split_from_array

NUM_FREE_IDS = 16  # ids that no token has; derivatives are those of their logits


class Row(NamedTuple):
    """One training row of the text whose tokens are their own places.

    place: i64[S], where in the text its tokens come from. target: i64[S], where its targets do.
    document: i64[S], in which document of the text its tokens are; 0 where documents are not kept
    apart. segment_ids: i32[S] or None, as the batch has them.
    """

    place: np.ndarray
    target: np.ndarray
    document: np.ndarray
    segment_ids: np.ndarray | None

    @property
    def tokens(self) -> np.ndarray:
        """i32[S], ids from 0: places, counted from the first of the row."""
        return (self.place - self.place.min()).astype(np.int32)


def training_row(
    context_length: int, make_batch: Callable[..., Batch] = batch_at, **options
) -> Row:
    """The first row of a run's first batch, cut from a text of documents of 2/5 of a row.

    Args:
      make_batch: as `jaxlm.data.batches.batch_at`. options: its seed, order and mask_documents.
    """
    starts = np.arange(0, 4 * context_length + 1, max(2, 2 * context_length // 5))
    text: Split = split_from_array(np.arange(4 * context_length + 1), starts)
    options = {"step": 0, "batch_size": 1, "context_length": context_length, **options}
    batch = make_batch(text, **options)
    place, target = (np.asarray(ids[0], np.int64) for ids in (batch.tokens, batch.targets))
    document = np.zeros_like(place)
    if options.get("mask_documents"):
        document = np.searchsorted(starts, place, side="right")
    return Row(place, target, document, None if batch.segment_ids is None else batch.segment_ids[0])


def readable(row: Row, reach: int | None = None) -> np.ndarray:
    """bool[S, S]: whether the logits at t may depend on token s: it is text before t's target.

    Args:
      reach: how many places before its own a prediction sees; None: all. A model of N layers with
        a window of w positions has a reach of N * (w - 1).
    """
    allowed = row.place[None, :] < row.target[:, None]
    allowed &= row.document[None, :] == row.document[:, None]
    if reach is not None:
        allowed &= row.place[:, None] - row.place[None, :] <= reach
    return allowed


def dependence(
    logits_of: Callable[[Array], Array], table: Array, tokens: Array, queries: Array, key: Array
) -> tuple[Array, Array]:
    """How strongly the logits at each query depend on the embedding of each token, and the logits.

    It is the largest entry of d(r . logits[t]) / d embedding[s] for a random direction r, so it
    is 0 where logits do not depend and, but for an event of probability 0, nowhere else. r is 0 at
    the ids of the row: a tied head, too, then shows the way through the input alone.

    Args:
      logits_of: embedding table f32[V, D] -> logits f32[1, S, V] of `tokens`.
      tokens: i32[S], all different, and fewer than V.
      queries: i32[Q], the t that are asked for.
    Returns:
      f32[Q, S] and f32[1, S, V].
    """
    logits, pull = jax.vjp(logits_of, table)

    def of_query(each):
        t, key = each
        direction = jax.random.normal(key, logits.shape[-1:]).at[tokens].set(0)
        (grad,) = pull(jnp.zeros_like(logits).at[0, t].set(direction.astype(logits.dtype)))
        return jnp.max(jnp.abs(grad[tokens]), axis=-1)

    return jax.lax.map(of_query, (queries, jax.random.split(key, len(queries)))), logits


class Offence(NamedTuple):
    """The first pair at which a measured dependence is not what it must be."""

    t: int
    s: int
    measured: float

    def __str__(self) -> str:
        verb = "do not depend" if self.measured == 0 else f"depend ({self.measured:.1e})"
        return f"(t, s) = ({self.t}, {self.s}): logits[{self.t}] {verb} on embedding[{self.s}]"


def first_offence(
    measured: np.ndarray,
    queries: np.ndarray,
    allowed: np.ndarray,
    required: np.ndarray | None = None,
) -> Offence | None:
    """The first (t, s) in reading order that is not zero and must be, or is zero and must not be.

    Args:
      measured: f32[Q, S], of `dependence`; NaN is an offence wherever it is.
      queries: i32[Q]. allowed: bool[S, S], of `readable`. required: those of them that must not be
        zero; None: all.
    """
    required = allowed if required is None else required
    wrong = np.isnan(measured) | np.where(required[queries], measured == 0, False)
    wrong |= ~allowed[queries] & (measured != 0)
    if not wrong.any():
        return None
    q, s = np.argwhere(wrong)[0]
    return Offence(int(queries[q]), int(s), float(measured[q, s]))


def cached_logits(model: Any, params: Params, tokens: Array) -> Array:
    """Logits f32[1, S, V] by `extend`: half the row, two tokens one by one, then the rest."""
    S = tokens.shape[1]
    edges = sorted({0, S // 2, min(S // 2 + 1, S), min(S // 2 + 2, S), S})
    cache, parts = model.init_cache(1, S), []
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        logits, cache = model.extend(params, tokens[:, start:end], cache)
        parts.append(logits)
    return jnp.concatenate(parts, axis=1)


def lively_params(key: Array, specs: dict[str, Any]) -> Params:
    """Weights of which none is idle, whatever their initial values: no gain 1, no bias or map 0."""

    def draw(path, spec):
        x = jax.random.normal(path_key(key, path), spec.shape, spec.dtype)
        if spec.kind == "vector":
            return 0.3 * x + (spec.init is ones)
        return x if spec.kind == "lookup" else 0.5 * x / np.sqrt(spec.fans[0])

    return trees.map_with_path(draw, specs)


def queries_of(context_length: int) -> np.ndarray:
    """i32[Q], the t to ask for: all of up to 256, of longer rows those around multiples of 64.

    There an implementation that works in parts has its edges.
    """
    every = np.arange(context_length, dtype=np.int32)
    at_edge = np.isin(every % 64, (0, 1, 63)) | (every == context_length - 1)
    return every[(context_length <= 256) | at_edge]
