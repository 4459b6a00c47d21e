"""Next-token cross-entropy, as sums and weights."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxlm.models.api import LanguageModel
from jaxlm.models.scoring import score_hidden
from jaxlm.nn.cross_entropy import token_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the training objective adds to the negative log-likelihood; 0 leaves a term out."""

    label_smoothing: float = 0.0  # share of each target moved to the uniform distribution
    z_loss: float = 0.0  # factor on the squared log of the softmax denominator; 1e-4 is usual

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1)")
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss} must not be negative")


def hyper_values(cfg: LossConfig) -> dict[str, float]:
    """The numbers of `cfg` that are in use, to be traced."""
    return {name: value for name, value in dataclasses.asdict(cfg).items() if value}


def make_loss_fn(
    model: LanguageModel, *, token_bytes: np.ndarray, vocab_chunk: int | None = None
) -> Callable:
    """Builds `loss_fn(params, frozen, carry, hypers, batch, key) -> (loss_sum, (Metrics, carry))`.

    The sum runs over the batch's tokens weighted by `batch.weights`; it is divided once, by the
    weight of the metric "loss". Hyper-parameters used where `hypers` has them: "dropout" (the rate;
    without it there is none, whatever the model's config says),
    "label_smoothing" (share of the target moved to the uniform distribution, Szegedy et al. 2016,
    section 7), "z_loss" (factor on log_z^2, Chowdhery et al. 2022, section 5). The reported loss
    is the plain negative log-likelihood in nats, whatever the objective adds to it.

    Args:
      token_bytes: i32[V], UTF-8 bytes of each id, so that loss also comes as bits per byte.
      vocab_chunk: as of `score_targets`.
    """

    def loss_fn(params, frozen, carry, hypers, batch, key):
        del frozen
        dropout = hypers.get("dropout")
        options = {"key": None if dropout is None else key, "dropout": dropout}
        options["segment_ids"] = batch.segment_ids
        if model.train_hidden is None:
            x = model.hidden(params, batch.tokens, **options)
        else:
            # Where the last target does not count, what is behind the row is another document.
            goes_on = None if batch.segment_ids is None else batch.weights[:, -1] > 0
            x, carry = model.train_hidden(params, batch.tokens, carry, goes_on=goes_on, **options)
        nll, log_z, mean_logit = score_hidden(
            model, params, x, batch.targets, vocab_chunk=vocab_chunk
        )
        objective = nll
        if "label_smoothing" in hypers:
            share = hypers["label_smoothing"]
            objective = (1 - share) * nll + share * (log_z - mean_logit)
        if "z_loss" in hypers:
            objective = objective + hypers["z_loss"] * jnp.square(log_z)
        return jnp.sum(objective * batch.weights), (token_metrics(nll, batch, token_bytes), carry)

    return loss_fn
