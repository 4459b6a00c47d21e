"""BERT: an encoder of text, with a head that classifies and one that fills in masked words.

Source: Devlin et al. 2018, "BERT". The layers are those of `jaxlm.models.transformer`: post-norm,
biases everywhere, learned positions. GELU is its tanh form, as in the authors' code (transformers:
hidden_act="gelu_new"). Attention maps have no dropout. Initial values are the house's; the three
tables are of one sigma, as the authors' are.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ParamSpec, ones, zeros
from jaxlm.models import transformer
from jaxlm.models.api import Classifier, LanguageModel
from jaxlm.models.dense import dense, dense_specs
from jaxlm.models.transformer import Trace, TransformerConfig
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.feedforward import gelu
from jaxlm.nn.norms import layer_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes, as of `TransformerConfig`. The defaults are those of BERT-base."""

    vocab_size: int = 30_522
    context_length: int = 512  # the size of the position table
    num_layers: int = 12
    d_model: int = 768
    num_heads: int = 12
    d_ff: int | None = None  # None: 4 * d_model
    num_types: int = 2  # rows of the type table; 0: none
    dropout: float = 0.1  # of the embedding, of each branch, and before the classifier
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.num_types < 0:
            raise ValueError(f"num_types={self.num_types} must be at least 0")
        _ = self.layers  # it checks the rest

    @property
    def layers(self) -> TransformerConfig:
        """The layers, with the token table as the head of the masked-word predictions."""
        shared = {f.name for f in dataclasses.fields(self)} - {"num_types"}
        return TransformerConfig(
            **{name: getattr(self, name) for name in shared},
            causal=False,
            norm="layer",
            norm_placement="post",
            norm_eps=1e-12,
            bias=True,
            activation="gelu",
            positions="learned",
            tied_head=True,
        )


BERT_BASE = EncoderConfig()
BERT_TINY = EncoderConfig(num_layers=2, d_model=128, num_heads=2)
DISTILBERT = EncoderConfig(num_layers=6, num_types=0)  # it has no pooler either


class TextInput(NamedTuple):
    """Rows of token ids.

    tokens: i32[B, S], the first of each row [CLS]. segment_ids: i32[B, S], 1 for a token and 0 for
    padding; None: no padding. type_ids: i32[B, S], which sentence of a pair; None: all 0.
    """

    tokens: Any
    segment_ids: Any = None
    type_ids: Any = None


def param_specs(cfg: EncoderConfig) -> dict[str, Any]:
    """The encoder without a head: 108.9 M in BERT-base, 66.4 M in DistilBERT."""
    specs = transformer.param_specs(cfg.layers)
    table = specs["embed"]
    specs["positions"] = dataclasses.replace(specs["positions"], init=table.init)
    if cfg.num_types:
        specs["types"] = dataclasses.replace(
            table, shape=(cfg.num_types, cfg.d_model), axes=("types", "embed")
        )
    return {**specs, **_norm_specs("embed_norm", cfg.d_model)}


def pooler_specs(cfg: EncoderConfig) -> dict[str, Any]:
    """The dense layer over [CLS]; with it BERT-base has its 109.5 M."""
    return {"pooler": dense_specs(cfg.d_model, cfg.d_model, ("embed", "embed_act"))}


def classifier_specs(cfg: EncoderConfig, num_classes: int) -> dict[str, Any]:
    """Encoder, pooler and the classifier."""
    head = {"classifier": dense_specs(cfg.d_model, num_classes, ("embed", "classes"))}
    return {**param_specs(cfg), **pooler_specs(cfg), **head}


def masked_lm_specs(cfg: EncoderConfig) -> dict[str, Any]:
    """Encoder and the head of the masked-word predictions; its last matrix is the token table."""
    dense = dense_specs(cfg.d_model, cfg.d_model, ("embed", "embed_act"))
    bias = ParamSpec(shape=(cfg.vocab_size,), axes=("vocab",), init=zeros, num_in=0)
    head = {"predictions": {**dense, **_norm_specs("norm", cfg.d_model)}, "unembed_bias": bias}
    return {**param_specs(cfg), **head}


def _norm_specs(name, size):
    gain = ParamSpec(shape=(size,), axes=("embed",), init=ones, num_in=0)
    return {name: gain, f"{name}_bias": dataclasses.replace(gain, init=zeros)}


def embed(params: Params, text: TextInput, cfg: EncoderConfig) -> Array:
    """Tokens, positions and types, summed and normalised: [B, S, D]."""
    tokens, segment_ids, type_ids = text
    x = transformer.embed(params, tokens, cfg.layers, segment_ids=segment_ids)
    if cfg.num_types:
        x = (x + params["types"][0 if type_ids is None else type_ids]).astype(x.dtype)
    elif type_ids is not None:
        raise ValueError("type_ids were given to an encoder with num_types=0")
    return layer_norm(x, params["embed_norm"], params["embed_norm_bias"], cfg.layers.norm_eps)


def hidden(params: Params, text: TextInput, cfg: EncoderConfig, **options: Any) -> Array:
    """What the heads read, [B, S, D]; that of padding means nothing.

    options: of `transformer.run_layers`, key= and dropout= among them.
    """
    x = embed(params, text, cfg)
    return transformer.run_layers(params, x, cfg.layers, segment_ids=text.segment_ids, **options)


def pool(params: Params, x: Array) -> Array:
    """tanh of a dense layer over the first place of [B, S, D] -> [B, D]."""
    return jnp.tanh(dense(x[:, 0], params["pooler"]))


def classify(
    params: Params,
    text: TextInput,
    cfg: EncoderConfig,
    *,
    key: Array | None = None,
    dropout: Array | float | None = None,
    **options: Any,
) -> Array:
    """Logits f32[B, C] of what `pool` gives; options as for `hidden`."""
    keys = (None, None) if key is None else jax.random.split(key)
    x = hidden(params, text, cfg, key=keys[0], dropout=dropout, **options)
    pooled = drop(pool(params, x), cfg.dropout if dropout is None else dropout, keys[1])
    return dense(pooled, params["classifier"]).astype(jnp.float32)


def transform(params: Params, x: Array, cfg: EncoderConfig) -> Array:
    """What the masked-word predictions are linear in: dense, GELU, layer norm of [B, S, D]."""
    head = params["predictions"]
    x = gelu(dense(x, head))
    return layer_norm(x, head["norm"], head["norm_bias"], cfg.layers.norm_eps)


def trace(params: Params, text: TextInput, cfg: EncoderConfig) -> Trace:
    """Residual streams and attention maps of every layer."""
    x = embed(params, text, cfg)
    return transformer.trace_layers(params, x, cfg.layers, segment_ids=text.segment_ids)


def every_second_layer(params: Params) -> Params:
    """The weights of a model of half the depth: layers 0, 2, 4, ... and all else as it is.

    Source: Sanh et al. 2019, "DistilBERT", section 3.
    """
    return {**params, "blocks": {name: w[::2] for name, w in params["blocks"].items()}}


def build_classifier(cfg: EncoderConfig, num_classes: int, **options: Any) -> Classifier:
    """Reads `TextInput`. options: attend, linear, constrain and unroll of `run_layers`."""
    return Classifier(
        specs=classifier_specs(cfg, num_classes),
        forward=functools.partial(classify, cfg=cfg, **options),
    )


def build_masked_lm(cfg: EncoderConfig, **options: Any) -> LanguageModel:
    """The model that is pretrained, of single sentences; options as of `build_classifier`.

    It sees both ways, so it predicts nothing but what is masked and has no cached decoding.
    """

    def transformed(params, tokens, *, segment_ids=None, **more):
        x = hidden(params, TextInput(tokens, segment_ids), cfg, **options, **more)
        return transform(params, x, cfg)

    head = dataclasses.replace(cfg.layers, head_bias=True)
    return LanguageModel(
        specs=masked_lm_specs(cfg),
        hidden=transformed,
        unembed=functools.partial(transformer.unembed, cfg=head),
        head=("embed", "unembed_bias"),
        init_cache=functools.partial(transformer.init_cache, cfg.layers),
        extend=functools.partial(transformer.extend, cfg=cfg.layers),
    )
