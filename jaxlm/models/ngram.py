"""n-gram models: counted, not trained. Counts are made on the device and take memory by the text.

    fitted = fit(NgramConfig(order=3), ids, vocab_size)      # ids i32[T], one text
    fitted.model.forward(fitted.params, tokens)              # log-probabilities, a LanguageModel's

The n-grams of a text are a tree: a node of depth k is an n-gram of k tokens that occurs, its parent
the one without the last token. Each depth is a table of its nodes sorted by (parent, token), so no
id ever has to name a whole n-gram, and a child is found by bisection. Depth 1 is the vocabulary.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import check_choices
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.models.api import LanguageModel
from jaxlm.nn.windows import append, windows

MISSING = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class NgramConfig:
    """order: tokens of the longest n-gram, the predicted one included: 2 is a bigram.

    smoothing: additive: (count(context, w) + alpha) / (count(context) + alpha V), of the longest
      context that the row has. kneser_ney: interpolated, with a discount for each order,
      n1 / (n1 + 2 n2) of the counts that are 1 and 2, and below the highest order the number of
      different tokens before an n-gram in place of its count.
    Source: Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language
      Modeling", sections 2.1 and 2.7, equations for p_KN; the discount is Ney et al. 1994's.
    """

    order: int = 3
    smoothing: Literal["additive", "kneser_ney"] = "kneser_ney"
    alpha: float = 1.0

    def __post_init__(self):
        check_choices(self)
        if not 1 <= self.order <= 5:
            raise ValueError(f"order={self.order} must be 1 to 5")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha} must be positive")


class Fitted(NamedTuple):
    """A counted model. params: {"depth_1": {"parent", "token", "count", "total", "kinds"}, ...}
    and, with Kneser-Ney, "discount" f32[order].

    Of each node of a depth: parent and token i32, and f32: count, its own (for Kneser-Ney below the
    highest order, of different tokens before it); total and kinds of its children: the sum of
    their counts and how many there are whose count is not 0.
    """

    model: LanguageModel
    params: Params


def fit(cfg: NgramConfig, text: np.ndarray, vocab_size: int) -> Fitted:
    """Counts the n-grams of one text, i32[T] with T at least `order`."""
    ids = jnp.asarray(text, jnp.int32)
    if ids.ndim != 1 or len(ids) < cfg.order:
        raise ValueError(f"expected a row of at least order={cfg.order} ids, got {ids.shape}")
    words = jnp.arange(vocab_size)
    counts = jnp.zeros(vocab_size, jnp.float32).at[ids].add(1)
    tables, nodes = [{"parent": 0 * words, "token": words, "count": counts}], [ids]
    for depth in range(2, cfg.order + 1):
        # nodes[n] are those of depth n + 1 that end at the positions from n on.
        table, found = _count_children(nodes[-1][:-1], ids[depth - 1 :])
        tables.append(table)
        nodes.append(found)
    params = _with_totals(cfg, tables, nodes)
    return Fitted(build(cfg, params, vocab_size), params)


def _count_children(parents: Array, tokens: Array) -> tuple[dict[str, Array], Array]:
    """The different pairs of i32[M], sorted, with their counts; and which of them each one is."""
    order = jnp.lexsort((tokens, parents))
    parent, token = parents[order], tokens[order]
    is_new = jnp.concatenate(
        [jnp.zeros(1, bool), (parent[1:] != parent[:-1]) | (token[1:] != token[:-1])]
    )
    rank = jnp.cumsum(is_new)
    number = int(rank[-1]) + 1
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.flatnonzero(is_new)])
    count = jax.ops.segment_sum(jnp.ones_like(rank), rank, number, indices_are_sorted=True)
    nodes = jnp.zeros_like(rank).at[order].set(rank)
    table = {"parent": parent[first], "token": token[first], "count": count.astype(jnp.float32)}
    return table, nodes


def _with_totals(cfg: NgramConfig, tables: list[dict[str, Array]], nodes: list[Array]) -> Params:
    counts = [table["count"] for table in tables]
    if cfg.smoothing == "kneser_ney":
        for n in range(cfg.order - 1):  # of depth n + 1: how many nodes of depth n + 2 end with it
            # A node and the one it ends with, at some position where both end.
            at = jnp.zeros(len(counts[n + 1]), jnp.int32)
            at = at.at[nodes[n + 1]].set(jnp.arange(len(nodes[n + 1]), dtype=jnp.int32))
            suffix = nodes[n][1:][at]
            counts[n] = jax.ops.segment_sum(jnp.ones(len(suffix)), suffix, len(counts[n]))
    params: Params = {}
    for n, (table, count) in enumerate(zip(tables, counts, strict=True)):
        number = 1 if n == 0 else len(tables[n - 1]["parent"])
        add = functools.partial(
            jax.ops.segment_sum, segment_ids=table["parent"], num_segments=number
        )
        params[f"depth_{n + 1}"] = {
            **table,
            "count": count,
            "total": add(count),
            "kinds": add((count > 0).astype(jnp.float32)),
        }
    if cfg.smoothing == "kneser_ney":
        params["discount"] = jnp.stack([_discount(count) for count in counts])
    return params


def _discount(count: Array) -> Array:
    """n1 / (n1 + 2 n2), of how many counts are 1 and 2; 1/2 where none is."""
    once, twice = jnp.sum(count == 1), jnp.sum(count == 2)
    return jnp.where(once > 0, once / jnp.maximum(once + 2 * twice, 1), 0.5)


def find_child(table: dict[str, Array], parent: Array, token: Array) -> Array:
    """i32[...], the node of this parent and token; MISSING where there is none.

    parent, token: i32 of shapes that broadcast; MISSING has no children.
    """
    parent, token = jnp.broadcast_arrays(parent, token)
    number = len(table["parent"])

    def halve(_, ends):
        low, high = ends  # the first node not below (parent, token) is in [low, high]
        middle = (low + high) // 2
        p, w = table["parent"][middle], table["token"][middle]
        below = (low < high) & ((p < parent) | ((p == parent) & (w < token)))
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    ends = (jnp.zeros_like(parent), jnp.full_like(parent, number))
    place, _ = jax.lax.fori_loop(0, number.bit_length() + 1, halve, ends)
    place = jnp.minimum(place, number - 1)
    found = (table["parent"][place] == parent) & (table["token"][place] == token)
    return jnp.where(found & (parent >= 0), place, MISSING)


def log_probs(
    params: Params,
    tokens: Array,
    cfg: NgramConfig,
    vocab_size: int,
    *,
    segment_ids: Array | None = None,
    before: Array | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
) -> Array:
    """Of every next token, f32[B, S, V], after each of i32[B, S].

    Args:
      segment_ids: i32[B, S], packed rows: contexts end at a segment's border. before: i32[B,
        order - 2], ids before the row, MISSING for none. key, dropout: of no effect.
    """
    del key, dropout
    words, V = jnp.arange(vocab_size), vocab_size
    size = max(1, cfg.order - 1)  # of the longest context, the position's own token included
    past = windows(tokens, size, fill=MISSING, segment_ids=segment_ids, before=before)
    probs = jnp.full((*tokens.shape, V), 1 / V, jnp.float32)
    for depth in range(1, cfg.order + 1):
        context = jnp.zeros(tokens.shape, jnp.int32)
        for n in range(1, depth):  # down from the root, along the last depth - 1 tokens
            context = find_child(params[f"depth_{n}"], context, past[..., size - depth + n])
        table = params[f"depth_{depth}"]
        node = find_child(table, context[..., None], words)
        count = jnp.where(node < 0, 0, table["count"][node])
        total = jnp.where(context < 0, 0, table["total"][context])[..., None]
        if cfg.smoothing == "additive":
            here = (count + cfg.alpha) / (total + cfg.alpha * V)
            known = jnp.ones((*tokens.shape, 1), bool)
            if depth > 1:
                known = past[..., size - depth + 1, None] >= 0
        else:
            discount, kinds = params["discount"][depth - 1], table["kinds"][context][..., None]
            known = total > 0
            here = jnp.maximum(count - discount, 0) + discount * kinds * probs
            here = here / jnp.where(known, total, 1)
        probs = jnp.where(known, here, probs)
    return jnp.log(probs)


@struct.dataclass
class NgramCache:
    """ids: i32[B, order - 2], the last tokens, MISSING where there are none. length: i32[B]."""

    ids: Array
    length: Array


def build(cfg: NgramConfig, params: Params, vocab_size: int) -> LanguageModel:
    """The functions of a counted model; of `params` only shapes are read.

    Its `specs` tell those: there is nothing to initialise or to train.
    """
    find = functools.partial(log_probs, cfg=cfg, vocab_size=vocab_size)

    def init_cache(batch_size, length):
        del length
        ids = jnp.full((batch_size, max(0, cfg.order - 2)), MISSING, jnp.int32)
        return NgramCache(ids, jnp.zeros(batch_size, jnp.int32))

    def extend(params, tokens, cache, *, lengths=None):
        logits = find(params, tokens, before=cache.ids)
        taken = tokens.shape[1] if lengths is None else lengths
        return logits, NgramCache(append(cache.ids, tokens, lengths), cache.length + taken)

    return LanguageModel(
        specs=trees.map_with_path(_spec, params),
        hidden=find,
        unembed=lambda params, x: x,
        head=(),
        init_cache=init_cache,
        extend=extend,
    )


def _spec(path: str, array: Array) -> ParamSpec:
    axis = "vocab" if path in ("depth_1/parent", "depth_1/token", "depth_1/count") else "nodes"
    return ParamSpec(shape=array.shape, axes=(axis,), init=zeros, num_in=0, dtype=array.dtype)
