"""How well a model predicts given targets, with the logits held whole or a part at a time."""

from typing import Any

import jax.numpy as jnp

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.kernels.chunked_cross_entropy import TokenScores, chunked_cross_entropy
from jaxlm.models.api import LanguageModel
from jaxlm.nn.cross_entropy import cross_entropy


def score_targets(
    model: LanguageModel,
    params: Params,
    batch: Any,
    *,
    vocab_chunk: int | None = None,
    **options: Any,
) -> TokenScores:
    """Scores f32[B, S] of the batch's targets.

    Args:
      batch: tokens, targets i32[B, S]; segment_ids i32[B, S] or None.
      vocab_chunk: ids whose logits are held at once, f32[B, S, vocab_chunk]; None: all.
      options: key and dropout of `model.hidden`.
    """
    x = model.hidden(params, batch.tokens, segment_ids=batch.segment_ids, **options)
    return score_hidden(model, params, x, batch.targets, vocab_chunk=vocab_chunk)


def score_hidden(
    model: LanguageModel, params: Params, x: Array, targets: Array, *, vocab_chunk: int | None
) -> TokenScores:
    """`score_targets` from what the head reads: x [B, S, D], targets i32[B, S]."""
    if vocab_chunk is None or not model.head:
        logits = model.unembed(params, x)
        return TokenScores(*cross_entropy(logits, targets), jnp.mean(logits, axis=-1))
    specs, weights = trees.flatten(model.specs), trees.flatten(params)
    return chunked_cross_entropy(
        lambda head, x: model.unembed(trees.unflatten(head), x),
        {path: jnp.asarray(weights[path]) for path in model.head},
        {path: specs[path].axes.index("vocab") for path in model.head},
        x,
        targets,
        chunk=vocab_chunk,
    )
