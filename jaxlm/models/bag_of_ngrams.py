"""A linear classifier of the mean embedding of a text's words and n-grams.

Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (fastText), whose
initial values it has: embeddings uniform in +-1/D, the output zero. No bias.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.data.ngrams import bags
from jaxlm.models.api import Classifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Sizes; what falls into one bucket shares an embedding."""

    num_classes: int = 2
    num_words: int = 1 << 16  # buckets of words
    num_ngrams: int = 1 << 18  # buckets of n-grams
    max_n: int = 2  # words of the longest n-gram; 1: words alone
    d_model: int = 16

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")


class Bag(NamedTuple):
    """ids: i32[B, L], buckets. weights: f32[B, L], 0 where there is none."""

    ids: Any
    weights: Any


def param_specs(cfg: BagConfig) -> dict[str, Any]:
    """embed [num_words + num_ngrams, D], words first, and head [D, C], zero at the start."""
    shape = (cfg.num_words + cfg.num_ngrams, cfg.d_model)
    return {
        "embed": ParamSpec(shape=shape, axes=("vocab", "embed"), init=_uniform),
        "head": ParamSpec(
            shape=(cfg.d_model, cfg.num_classes), axes=("embed", "classes"), init=zeros
        ),
    }


def _uniform(key, spec):
    bound = 1 / spec.shape[1]
    return jax.random.uniform(key, spec.shape, spec.dtype, -bound, bound)


def bag_of(texts: Sequence[str], cfg: BagConfig) -> Bag:
    """What the model reads of each text."""
    sizes = {"num_words": cfg.num_words, "num_ngrams": cfg.num_ngrams, "max_n": cfg.max_n}
    return Bag(*bags(texts, **sizes))


def forward(
    params: Params, bag: Bag, *, key: Array | None = None, dropout: Array | float | None = None
) -> Array:
    """Logits f32[B, C]; 0 for a text without a word. It has no dropout."""
    del key, dropout
    total = jnp.einsum("bl,bld->bd", bag.weights, params["embed"][bag.ids])
    count = jnp.sum(bag.weights, axis=1, keepdims=True)
    return total / jnp.maximum(count, 1) @ params["head"]


_probabilities = jax.jit(lambda params, bag: jax.nn.softmax(forward(params, bag)))


def score(params: Params, texts: Sequence[str], cfg: BagConfig) -> np.ndarray:
    """f32[n, C], the probability of each class for each text."""
    return np.asarray(_probabilities(params, bag_of(texts, cfg)))


def build(cfg: BagConfig) -> Classifier:
    """Reads `Bag`s."""
    return Classifier(specs=param_specs(cfg), forward=forward)
