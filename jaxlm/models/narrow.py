"""The transformer, decoding with its matrices in bfloat16: half the bytes that each token reads.

The residual stream, norms, softmax and the cache keep the config's dtype, and sums are float32.
"""

import functools

import jax.numpy as jnp

from jaxlm.core.arrays import Array, Params
from jaxlm.kernels.narrow_linear import linear, narrow
from jaxlm.models import transformer
from jaxlm.models.api import LanguageModel
from jaxlm.models.transformer import TransformerConfig


def build(cfg: TransformerConfig) -> LanguageModel:
    """`transformer.build(cfg)` whose `extend` rounds weights, and what they multiply, to bfloat16.

    Its `extend`, and so `generate`, take `jax.jit(model.decoding_params)(params)` in place of
    params, and raise ValueError otherwise.
    """
    return transformer.build(cfg)._replace(
        decoding_params=functools.partial(decoding_params, cfg=cfg),
        extend=functools.partial(_extend, cfg=cfg),
    )


def decoding_params(params: Params, cfg: TransformerConfig) -> Params:
    """`transformer.decoding_params`, each matrix as `narrow` has it, and a `head` bf16[V, D]."""
    specs = transformer.param_specs(cfg)["blocks"]
    matrices = [name for name, spec in specs.items() if spec.kind == "matrix"]
    params = transformer.decoding_params(params, cfg)
    layers = [
        w | {name: narrow(w[name], specs[name].num_in) for name in matrices}
        for w in params["blocks"]
    ]
    rest = {name: w for name, w in params.items() if name != "unembed"}
    head = params["embed"].astype(jnp.bfloat16) if cfg.tied_head else narrow(params["unembed"])
    return {**rest, "blocks": tuple(layers), "head": head}


def _extend(params, tokens, cache, cfg, **options):
    if "head" not in params:
        raise ValueError("narrow decoding: give it decoding_params(params) in place of params")
    options = {"linear": linear, "unembed": _unembed, **options}
    return transformer.extend(params, tokens, cache, cfg, **options)


def _unembed(params: Params, x: Array, cfg: TransformerConfig) -> Array:
    logits = linear(x.astype(jnp.float32), params["head"])
    return transformer.finish_logits(logits, params, cfg)
