"""The neural bigram: a table with a row of logits for each token, and nothing else.

Trained on the cross-entropy it becomes the table of counts: at the minimum the softmax of a row is
the frequency of each next token. `jaxlm.models.ngram` gets there by counting.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import check_choices
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.models.api import LanguageModel, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigramConfig(ModelConfig):
    """A table [V, V], at first of zeros: all next tokens are equally likely."""

    kind: Literal["bigram"] = "bigram"

    def __post_init__(self):
        check_choices(self)
        self.check_counts("vocab_size", "context_length")

    @property
    def d_model(self) -> int | None:
        return self.vocab_size

    @property
    def summary(self) -> str:
        return "bigram, a table of logits"

    @property
    def reach(self) -> int:
        return 0


@struct.dataclass
class LengthCache:
    """length: i32[B], tokens read; a row needs none of them but its newest."""

    length: Array


def param_specs(cfg: BigramConfig) -> dict[str, Any]:
    """The table."""
    V = cfg.known_vocab_size
    return {"embed": ParamSpec(shape=(V, V), axes=("vocab", "next"), init=zeros)}


def hidden(
    params: Params,
    tokens: Array,
    *,
    segment_ids: Array | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
) -> Array:
    """The logits themselves, f32[B, S, V]; no option changes them."""
    del segment_ids, key, dropout
    return params["embed"][tokens]


def unembed(params: Params, x: Array) -> Array:
    """x f32[B, S, V], unchanged: `hidden` gives logits."""
    del params
    return x


def init_cache(batch_size: int, length: int) -> LengthCache:
    """It takes any number of tokens."""
    del length
    return LengthCache(jnp.zeros(batch_size, jnp.int32))


def extend(params, tokens, cache, *, lengths=None) -> tuple[Array, LengthCache]:
    """See `jaxlm.models.api.LanguageModel`."""
    taken = tokens.shape[1] if lengths is None else lengths
    return hidden(params, tokens), LengthCache(cache.length + taken)


def build(cfg: BigramConfig, **options: Any) -> LanguageModel:
    """The config's model. options: there is no product and nothing to place, so none is used."""
    del options
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=hidden,
        unembed=unembed,
        head=(),
        init_cache=init_cache,
        extend=extend,
    )
