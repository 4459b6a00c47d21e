"""Decoding with bfloat16 matrices: near the model in float32, and as exact as it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.core import trees
from jaxlm.decode.generate import generate
from jaxlm.models import narrow, transformer
from jaxlm.models.transformer import TransformerConfig

TOKENS = np.random.default_rng(0).integers(13, size=(2, 8)).astype(np.int32)
BASE = TransformerConfig(
    vocab_size=13, context_length=12, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2
)
CONFIGS = {
    "llama": BASE,
    "gpt2": dataclasses.replace(
        BASE, positions="learned", norm="layer", bias=True, activation="gelu", tied_head=True
    ),
    "gemma": dataclasses.replace(
        BASE, qk_norm=True, head_bias=True, attention_softcap=1.0, logit_softcap=2.0
    ),
}


@functools.cache
def decoded(cfg, num_rows):
    """(params) -> logits after each token of `num_rows` rows, the first four read at once."""
    model = narrow.build(cfg)

    def run(params):
        params, tokens = model.decoding_params(params), TOKENS[:num_rows]
        first, cache = model.extend(params, tokens[:, :4], model.init_cache(num_rows, 12))

        def step(cache, token):
            logits, cache = model.extend(params, token[:, None], cache)
            return cache, logits[:, 0]

        _, rest = jax.lax.scan(step, cache, tokens[:, 4:].T)
        return jnp.concatenate([first, jnp.swapaxes(rest, 0, 1)], axis=1)

    return quick_jit(run)


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("style", CONFIGS)
def test_logits_are_off_by_the_rounding_of_products(style, num_rows, forward_of, params_of):
    cfg = CONFIGS[style]
    logits = decoded(cfg, num_rows)(params_of(cfg))
    exact = forward_of(cfg)(params_of(cfg), TOKENS)[:num_rows]
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits; seven products on the way through a layer, and the head
    difference = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-4 < difference < 0.03


def test_generation_is_the_argmax_of_its_own_logits(params_of):
    model = narrow.build(BASE)
    ready = model.decoding_params(params_of(BASE))
    prompt = TOKENS[:1, :4]
    run = functools.partial(generate, model, prompts=prompt, key=jax.random.key(0), num_tokens=3)
    [tokens] = run(params=ready, temperature=0.0).tokens
    whole = np.concatenate([prompt, tokens[None]], axis=1)
    logits, _ = quick_jit(model.extend)(ready, whole, model.init_cache(1, 12))
    np.testing.assert_array_equal(tokens, np.argmax(logits[0, 3:-1], axis=-1))
    with pytest.raises(ValueError, match="decoding_params"):
        run(params=params_of(BASE))


def test_matrices_are_rounded_and_nothing_else(params_of):
    cfg = CONFIGS["gemma"]
    params = narrow.decoding_params(params_of(cfg), cfg)
    specs = transformer.param_specs(cfg)
    for layer in params["blocks"]:
        for name, w in layer.items():
            matrix = specs["blocks"][name].kind == "matrix"
            assert w.dtype == (jnp.bfloat16 if matrix else jnp.float32), name
    rest = {name: w for name, w in params.items() if name != "blocks"}
    assert params["head"].dtype == jnp.bfloat16
    assert {w.dtype for name, w in trees.flatten(rest).items() if name != "head"} == {
        jnp.dtype("float32")
    }
