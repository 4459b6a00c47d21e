"""Masked-language-model loss: some tokens are hidden, and only those count.

Source: Devlin et al. 2018, "BERT", section 3.1 and appendix A.1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.core.metrics import Mean
from jaxlm.data.batches import Batch
from jaxlm.models.api import LanguageModel
from jaxlm.models.scoring import score_targets

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


def mask_tokens(
    key: Array, tokens: Array, *, mask_id: int, num_special: int, vocab_size: int, rate: float
) -> tuple[Array, Array]:
    """Chooses each token with probability `rate`; of those 80% become `mask_id`, 10% another word
    drawn at random, 10% stay.

    Each token is chosen for itself, where the authors chose a fixed number in each row.

    Args:
      key: consumed. tokens: i32[B, S].
      num_special: ids below it ([CLS], padding) are never chosen and never drawn.
    Returns:
      i32[B, S], what the model reads, and f32[B, S], 1 where a token was chosen.
    """
    choose, change, draw = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(choose, rate, tokens.shape) & (tokens >= num_special)
    place = jax.random.uniform(change, tokens.shape)
    drawn = jax.random.randint(draw, tokens.shape, num_special, vocab_size, tokens.dtype)
    read = jnp.where(place < MASKED, mask_id, jnp.where(place < MASKED + RANDOM, drawn, tokens))
    return jnp.where(chosen, read, tokens), chosen.astype(jnp.float32)


def make_loss_fn(
    model: LanguageModel,
    *,
    mask_id: int,
    num_special: int,
    vocab_size: int,
    rate: float = 0.15,
    vocab_chunk: int | None = None,
) -> Callable:
    """Builds `loss_fn(params, frozen, carry, hypers, batch, key) -> (loss_sum, (Metrics, carry))`.

    Which tokens are masked is a function of the step's key: each epoch hides others. The sum runs
    over the masked tokens, which are the weight of "loss" (nats a token); a batch has to be large
    enough to hold some. Dropout as in `jaxlm.objectives.next_token`.

    Args:
      mask_id, num_special, vocab_size, rate: as of `mask_tokens`.
      vocab_chunk: as of `score_targets`.
    Returns:
      loss_fn; it reads tokens, segment_ids and weights of a `Batch`, its targets are not used. A
      token of weight 0 does not count.
    """

    def loss_fn(params, frozen, carry, hypers, batch, key):
        del frozen
        mask_key, key = jax.random.split(key)
        read, chosen = mask_tokens(
            mask_key,
            batch.tokens,
            mask_id=mask_id,
            num_special=num_special,
            vocab_size=vocab_size,
            rate=rate,
        )
        weights = chosen * batch.weights
        masked = Batch(
            tokens=read, targets=batch.tokens, weights=weights, segment_ids=batch.segment_ids
        )
        dropout = hypers.get("dropout")
        nll, _, _ = score_targets(
            model,
            params,
            masked,
            vocab_chunk=vocab_chunk,
            key=None if dropout is None else key,
            dropout=dropout,
        )
        total = jnp.sum(nll * weights)
        return total, ({"loss": Mean(total, jnp.sum(weights))}, carry)

    return loss_fn
