"""What a model says of a text: its loss by token, its attention, and what each layer would predict.

Source of the lens: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array, Params
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.norms import layer_norm, rms_norm


class Explanation(NamedTuple):
    """Of one text of S tokens, through N layers.

    attention: f32[N, H, S, S], of each query a row. top_ids: i32[N, S, k] and top_probs:
    f32[N, S, k], the likeliest next tokens by the residual stream after each layer; those of the
    last are the model's. nll: f32[S - 1], nats, of each token but the first. ranks: i32[S - 1], how
    many tokens the model held to be likelier than it.
    """

    attention: Array
    top_ids: Array
    top_probs: Array
    nll: Array
    ranks: Array


def explain(params: Params, tokens: Array, cfg: TransformerConfig, k: int = 5) -> Explanation:
    """Runs `tokens` i32[S] once. k: likeliest tokens kept; at most the vocabulary."""
    seen = transformer.trace(params, tokens[None], cfg)

    def likeliest(x):
        return jax.lax.top_k(jax.nn.softmax(lens(params, x, cfg)), k)

    top_probs, top_ids = jax.lax.map(likeliest, seen.residual[:, 0])
    log_probs = jax.nn.log_softmax(lens(params, seen.residual[-1, 0], cfg))[:-1]
    own = jnp.take_along_axis(log_probs, tokens[1:, None], axis=-1)
    ranks = jnp.sum(log_probs > own, axis=-1)
    return Explanation(seen.attention[:, 0], top_ids, top_probs, -own[:, 0], ranks)


def lens(params: Params, x: Array, cfg: TransformerConfig) -> Array:
    """Logits f32[S, V] that the final norm and the head make of a residual stream [S, D]."""
    if cfg.norm_placement == "pre":
        gain, bias = params["final_norm"], params.get("final_norm_bias")
        rms = cfg.norm == "rms"
        x = rms_norm(x, gain, cfg.norm_eps) if rms else layer_norm(x, gain, bias, cfg.norm_eps)
    return transformer.unembed(params, x[None], cfg)[0]
