"""Loss, perplexity and bits per byte over a whole split."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.metrics import Mean
from jaxlm.models.api import LanguageModel
from jaxlm.models.scoring import score_targets
from jaxlm.nn.cross_entropy import token_metrics


def batch_metrics(
    model: LanguageModel,
    params: Params,
    batch: Any,
    token_bytes: np.ndarray,
    vocab_chunk: int | None = None,
) -> dict[str, Mean]:
    """The "loss" and "bits_per_byte" of one batch, as sums and weights; see `make_evaluator`."""
    scores = score_targets(model, params, batch, vocab_chunk=vocab_chunk)
    return token_metrics(scores.nll, batch, token_bytes)


def make_evaluator(
    model: LanguageModel, *, token_bytes: np.ndarray, vocab_chunk: int | None = None
) -> Callable[[Params, Iterable[Any]], dict[str, float]]:
    """Builds `evaluate(params, batches) -> dict`; keep it, it compiles on first use.

    `batches` are pytrees with tokens, targets i32[B, S], weights f32[B, S] and segment_ids
    i32[B, S] or None, all of one shape; padding has weight 0. The means are over all tokens, not
    over batches: sums and weights are added in float64 and divided once.

    `evaluate` returns
      loss: mean negative log-likelihood, nats a token.
      perplexity: exp(loss).
      bits_per_byte: the same total in bits, over the UTF-8 bytes of the targets.
      num_tokens: int, how many targets counted: the sum of the weights, rounded.
    and raises ConfigError where no target counts.

    Args:
      token_bytes: i32[V], UTF-8 bytes of each id.
      vocab_chunk: as of `score_targets`.
    """

    @jax.jit
    def sums(params, batch):
        return batch_metrics(model, params, batch, token_bytes, vocab_chunk)

    def evaluate(params, batches):
        zero = np.zeros((), np.float64)
        totals = {name: Mean(zero, zero) for name in ("loss", "bits_per_byte")}
        for batch in batches:
            part = jax.device_get(sums(params, batch))
            totals = jax.tree.map(lambda total, x: total + np.float64(x), totals, part)
        num_tokens = totals["loss"].weight
        if not num_tokens:
            raise ConfigError("nothing to evaluate: no batch has a target of weight above 0")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            loss = totals["loss"].compute()
            return {
                "loss": float(loss),
                "perplexity": float(np.exp(loss)),
                "bits_per_byte": float(totals["bits_per_byte"].compute()),
                "num_tokens": round(float(num_tokens)),
            }

    return evaluate
