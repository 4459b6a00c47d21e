"""Models of the decoding tests: small transformers with large weights, and a table of bigrams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.core import trees
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.models.api import LanguageModel
from jaxlm.models.transformer import TransformerConfig, build

V = 13
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
KINDS = {
    "rope": {"num_kv_heads": 2, "qk_norm": True},
    "learned": {"norm_placement": "post", "activation": "gelu", "tied_head": True, "bias": True},
    "sinusoidal": {"window": 3, "norm": "layer"},
    "none": {"attention_softcap": 5.0, "logit_softcap": 2.0, "head_bias": True},
}


@functools.cache
def transformer(positions, vocab_size=V, num_layers=2, seed=11):
    """(model, params); its weights are large everywhere, biases too, so that texts vary."""
    cfg = TransformerConfig(
        vocab_size=vocab_size,
        context_length=24,
        num_layers=num_layers,
        d_model=16,
        num_heads=4,
        positions=positions,
        **KINDS[positions],
    )
    model, rng = build(cfg), np.random.default_rng(seed)
    draw = lambda path, spec: rng.normal("norm" in path, 0.6, spec.shape)  # noqa: E731
    return model, jax.tree.map(np.float32, trees.map_with_path(draw, model.specs))


@struct.dataclass
class Held:
    """The cache of the bigram model: it needs nothing but the count of its tokens."""

    length: jax.Array


@functools.cache
def bigram(vocab_size=V, seed=0, sigma=1.0):
    """logits = table[last token]: a model whose probabilities are known; and a trace counter."""
    traces = []

    def extend(params, tokens, cache, lengths=None):
        traces.append(tokens.shape)
        taken = tokens.shape[1] if lengths is None else lengths
        return params["table"][tokens], Held(cache.length + taken)

    shape = (vocab_size, vocab_size)
    model = LanguageModel(
        specs={"table": ParamSpec(shape=shape, axes=("vocab", "embed"), init=zeros)},
        hidden=lambda params, tokens: tokens,
        unembed=lambda params, tokens: params["table"][tokens],
        head=("table",),
        init_cache=lambda batch_size, length: Held(jnp.zeros(batch_size, jnp.int32)),
        extend=extend,
        take_back=lambda cache, length: Held(length),
    )
    table = np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)
    return model, {"table": table}, traces
