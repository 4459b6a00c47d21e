"""Cross-entropy of next tokens, and its sums as nats a token and bits a byte."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array
from jaxlm.core.metrics import Mean


def cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Negative log-likelihood of each target, in nats.

    Args:
      logits: [..., V], taken to float32; survives large values (log-sum-exp form).
      targets: i32[...], ids in [0, V).
    Returns:
      nll f32[...] and log_z f32[...], the log of the softmax denominator.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Not taken by index: the gradient of that scatters into an array of the logits' size, where
    # this one's is part of the softmax's.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    picked = jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return log_z - picked, log_z


def token_metrics(nll: Array, batch, token_bytes: np.ndarray) -> dict[str, Mean]:
    """Mean nats a token ("loss") and mean bits a byte ("bits_per_byte") of nll f32[B, S]."""
    total = jnp.sum(nll * batch.weights)
    num_bytes = jnp.sum(jnp.asarray(token_bytes, jnp.float32)[batch.targets] * batch.weights)
    return {
        "loss": Mean(total, jnp.sum(batch.weights)),
        "bits_per_byte": Mean(total / np.log(2), num_bytes),
    }
