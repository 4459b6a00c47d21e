"""Cross-entropy of labels, weighted by class, and distillation, as sums and weights."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxlm.core.metrics import Mean
from jaxlm.models.api import Classifier
from jaxlm.nn.cross_entropy import cross_entropy
from jaxlm.objectives.distillation import soft_divergence


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """f32[C], n / (C n_c), by how many of n examples each class has; their mean is 1 over examples.

    counts: i64[C]. They are scikit-learn's class_weight="balanced".
    """
    counts = np.asarray(counts, np.float64)
    if (counts < 1).any():
        raise ValueError(f"counts={counts.tolist()}: a class without an example has no weight")
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)


def make_loss_fn(model: Classifier, *, class_weights: np.ndarray | None = None) -> Callable:
    """Builds `loss_fn(params, frozen, carry, hypers, batch, key) -> (loss_sum, (Metrics, carry))`.

    The sum of w[label] * nll, which is divided by the sum of w[label]: the weighted mean of
    torch.nn.CrossEntropyLoss(weight=w), over the whole batch however it is split. That mean is the
    metric "loss", in nats; "accuracy" counts every example once.

    Hyper-parameters used where `hypers` has them: "dropout" (without it there is none),
    "class_balance" (w is class_weights to this power: 0 is no weighting), and for a batch with
    `teacher_logits`, which it then needs, "temperature" and "soft_share": the objective is
    (1 - soft_share) nll + soft_share T^2 KL, see `soft_divergence`; the metric stays the nll.

    Args:
      class_weights: w, f32[C]; None: all 1.
    Returns:
      loss_fn; its batch is `jaxlm.data.examples.Examples`.
    """

    def loss_fn(params, frozen, carry, hypers, batch, key):
        del frozen
        dropout = hypers.get("dropout")
        logits = model.forward(
            params, batch.inputs, key=None if dropout is None else key, dropout=dropout
        )
        nll, _ = cross_entropy(logits, batch.labels)
        weights = jnp.ones_like(nll)
        if class_weights is not None:
            weights = jnp.asarray(class_weights)[batch.labels] ** hypers.get("class_balance", 1.0)
        objective = nll
        if batch.teacher_logits is not None:
            soft = soft_divergence(logits, batch.teacher_logits, hypers["temperature"])
            objective = (1 - hypers["soft_share"]) * nll + hypers["soft_share"] * soft
        right = jnp.argmax(logits, axis=-1) == batch.labels
        metrics = {
            "loss": Mean(jnp.sum(nll * weights), jnp.sum(weights)),
            "accuracy": Mean(jnp.sum(right, dtype=jnp.float32), jnp.float32(right.size)),
        }
        return jnp.sum(objective * weights), (metrics, carry)

    return loss_fn
