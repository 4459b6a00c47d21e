"""The forward pass against float64 loops over the layers, and against Hugging Face models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from oracles import transformer_float64

from jaxlm.core import trees
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig

BASE = {"vocab_size": 13, "context_length": 12, "num_layers": 2, "d_model": 16, "num_heads": 4}
STYLES = {
    "llama": {},
    "gpt2": {
        "norm": "layer",
        "bias": True,
        "activation": "gelu",
        "positions": "learned",
        "tied_head": True,
    },
    "original": {"norm_placement": "post", "activation": "relu", "positions": "sinusoidal"},
    "no norm": {"norm_placement": "none", "activation": "relu", "head_bias": True},
    "gemma": {
        "num_kv_heads": 2,
        "head_dim": 6,
        "d_ff": 20,
        "activation": "geglu",
        "qk_norm": True,
        "window": 3,
        "attention_softcap": 0.8,
        "logit_softcap": 1.5,
        "rope_layout": "half",
        "rope_theta": 500.0,
    },
    "bert": {
        "causal": False,
        "norm": "layer",
        "norm_placement": "post",
        "bias": True,
        "activation": "relu_squared",
        "positions": "none",
        "num_kv_heads": 1,
    },
    "no residual": {"residual": 0.0, "activation": "silu", "norm": "layer", "bias": False},
    "half residual": {
        "residual": 0.5,
        "activation": "reglu",
        "bias": True,
        "num_layers": 3,
        "scan_unroll": 2,
    },
}
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0], [4, 5, 5, 5, 5, 5, 6, 6, 6]], np.int32)


def config(style, **changes):
    return TransformerConfig(**(BASE | STYLES[style] | changes))


PACKED = ("llama", "gpt2", "gemma", "bert")


@pytest.mark.parametrize("style", STYLES)
def test_logits_are_those_of_the_float64_loop_packed_or_not(style, forward_of, params_of):
    cfg = config(style)
    params = params_of(cfg)
    for segments in (None, SEGMENTS) if style in PACKED else (None,):
        exact, _, _ = transformer_float64.forward(params, TOKENS, cfg, segments)
        logits = forward_of(cfg)(params, TOKENS, segment_ids=segments)
        assert logits.dtype == jnp.float32
        # float32 rounding through two or three layers, in units of the largest logit
        np.testing.assert_allclose(logits, exact, atol=2e-5 * np.abs(exact).max())


@pytest.mark.parametrize("style", ["gemma", "bert"])
def test_trace_shows_the_streams_and_maps_of_the_float64_loop(style, params_of):
    cfg = config(style)
    _, streams, maps = transformer_float64.forward(params_of(cfg), TOKENS, cfg)
    seen = quick_jit(lambda p, t: transformer.trace(p, t, cfg))(params_of(cfg), TOKENS)
    np.testing.assert_allclose(seen.residual, streams, atol=2e-5 * np.abs(streams).max())
    np.testing.assert_allclose(seen.attention, maps, atol=1e-5)


def test_what_traced_heads_gave_is_what_attention_adds(params_of):
    """With an idle feed-forward a layer adds the heads' outputs, each by its slice of wo."""
    cfg = config("no norm", num_kv_heads=2)
    params = dict(params_of(cfg))
    params["blocks"] = params["blocks"] | {"w_down": jnp.zeros_like(params["blocks"]["w_down"])}
    seen = quick_jit(lambda p, t: transformer.trace(p, t, cfg))(params, TOKENS)
    added = np.einsum("nbshe,nhed->nbsd", *map(np.float64, (seen.heads, params["blocks"]["wo"])))
    streams = np.concatenate([params["embed"][TOKENS][None], seen.residual])
    np.testing.assert_allclose(np.diff(streams, axis=0), added, atol=1e-5 * np.abs(added).max())


def test_build_offers_the_same_functions(forward_of, extend_of, params_of, small_cfg):
    params, model = params_of(small_cfg), transformer.build(small_cfg)
    logits = forward_of(small_cfg)(params, TOKENS)
    np.testing.assert_allclose(quick_jit(model.forward)(params, TOKENS), logits, atol=1e-6)
    step = quick_jit(model.decode_step)
    first, cache = step(params, TOKENS[:, 0], model.init_cache(2, 4))
    assert first.shape == (2, 13)
    np.testing.assert_allclose(first, logits[:, 0], atol=1e-5)
    np.testing.assert_array_equal(cache.length, [1, 1])
    assert trees.flatten(model.specs).keys() == trees.flatten(params).keys()


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_positions_are_used_or_not(positions, forward_of, params_of):
    # Without positions an encoder cannot tell the order of its tokens.
    cfg = config("llama", causal=False, positions=positions, num_layers=1)
    order = np.random.default_rng(1).permutation(9)
    logits, shuffled = (forward_of(cfg)(params_of(cfg), t) for t in (TOKENS, TOKENS[:, order]))
    gap = np.abs(shuffled - logits[:, order]).max()
    assert gap < 1e-5 if positions == "none" else gap > 1e-3


def test_an_output_init_of_zero_starts_from_the_identity():
    cfg = config("gpt2", output_init=0.0)
    specs = transformer.param_specs(cfg)
    params = trees.map_with_path(
        lambda path, spec: (
            spec.init(jax.random.key(0), spec)
            if path.endswith(("wo", "w_down")) or spec.kind == "vector"
            else 0.1 * np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
        ),
        specs,
    )
    embedded = params["embed"][TOKENS] + params["positions"][: TOKENS.shape[1]]
    seen = quick_jit(lambda p, t: transformer.trace(p, t, cfg))(params, TOKENS)
    for layer in seen.residual:
        np.testing.assert_array_equal(layer, embedded)


def test_a_residual_of_zero_cuts_the_skip_connection(params_of):
    cfg = config("no residual")
    params = dict(params_of(cfg))
    params["blocks"] = params["blocks"] | {"w_down": jnp.zeros_like(params["blocks"]["w_down"])}
    seen = quick_jit(lambda p, t: transformer.trace(p, t, cfg))(params, TOKENS)
    np.testing.assert_array_equal(seen.residual, np.zeros_like(seen.residual))


def hand_count(N, D, H, K, Dh, F, V):
    attention = D * H * Dh + 2 * D * K * Dh + H * Dh * D
    return V * D + N * (attention + 3 * D * F + 2 * D) + D + D * V


def test_the_count_is_the_hand_formula():
    cfg = TransformerConfig(
        vocab_size=100, num_layers=3, d_model=32, num_heads=4, num_kv_heads=2, head_dim=10, d_ff=50
    )
    specs = trees.flatten(transformer.param_specs(cfg)).values()
    assert sum(np.prod(s.shape) for s in specs) == hand_count(3, 32, 4, 2, 10, 50, 100)


def test_gpt2_small_has_its_published_number_of_weights():
    cfg = TransformerConfig(
        vocab_size=50257,
        context_length=1024,
        num_layers=12,
        d_model=768,
        num_heads=12,
        **STYLES["gpt2"],
    )
    specs = trees.flatten(transformer.param_specs(cfg)).values()
    assert sum(s.size for s in specs) == 124_439_808


@pytest.mark.parametrize(("d_model", "d_ff"), [(128, 344), (96, 256), (512, 1368), (16, 48)])
def test_the_gated_width_is_eight_thirds_in_whole_eights(d_model, d_ff):
    assert d_ff == TransformerConfig(d_model=d_model).sizes.F
    assert d_ff % 8 == 0
    assert 0 <= d_ff - 8 * d_model / 3 < 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 8, "num_kv_heads": 3}, "num_heads=8 must be a multiple of num_kv_heads=3"),
        (
            {"d_model": 10, "num_heads": 4},
            "d_model=10 must be a multiple of num_heads=4, or head_dim be given",
        ),
        ({"head_dim": 5}, "head_dim=5 must be even with positions=rope"),
        (
            {"d_model": 9, "num_heads": 3, "positions": "sinusoidal"},
            "d_model=9 must be even with positions=sinusoidal",
        ),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"vocab_size": -1}, "vocab_size=-1 must be at least 1"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 must be at least 1"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be in [0, 1)"),
        ({"dropout": -0.1}, "dropout=-0.1 must be in [0, 1)"),
        ({"attention_softcap": 0.0}, "attention_softcap=0.0 must be positive"),
        ({"logit_softcap": -1.0}, "logit_softcap=-1.0 must be positive"),
        ({"norm_eps": 0.0}, "norm_eps=0.0 must be positive"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0 must be positive"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError) as refused:
        TransformerConfig(**(BASE | change))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "change",
    [{"head_dim": 5, "positions": "none"}, {"d_model": 10, "head_dim": 4}, {"dropout": 0.0}],
)
def test_a_config_at_the_edge_is_taken(change):
    TransformerConfig(**(BASE | change))


def test_weights_cannot_be_declared_without_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size"):
        transformer.param_specs(TransformerConfig())


# ---- against Hugging Face


@pytest.fixture(scope="module")
def peers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return torch, transformers


def randomised(torch, model):
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.2 * torch.randn_like(w))
    return {name: w.detach().numpy() for name, w in model.state_dict().items()}


def agree(torch, model, params, cfg, forward_of):
    specs = transformer.param_specs(cfg)
    assert trees.flatten(params).keys() == trees.flatten(specs).keys()
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    ours = forward_of(cfg)(params, TOKENS)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_logits_are_those_of_gpt2(peers, forward_of):
    torch, transformers = peers
    cfg = config("gpt2")
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=13,
            n_positions=12,
            n_embd=16,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        )
    ).eval()
    w = randomised(torch, model)

    def stacked(name, shape=None):
        both = np.stack([w[f"transformer.h.{n}.{name}"] for n in range(2)])
        return both if shape is None else both.reshape(2, *shape)

    qkv = stacked("attn.c_attn.weight", (16, 3, 4, 4))
    qkv_bias = stacked("attn.c_attn.bias", (3, 4, 4))
    blocks = {f"w{x}": qkv[:, :, i] for i, x in enumerate("qkv")}
    blocks |= {f"b{x}": qkv_bias[:, i] for i, x in enumerate("qkv")}
    blocks |= {
        "wo": stacked("attn.c_proj.weight", (4, 4, 16)),
        "bo": stacked("attn.c_proj.bias"),
        "w_up": stacked("mlp.c_fc.weight"),
        "b_up": stacked("mlp.c_fc.bias"),
        "w_down": stacked("mlp.c_proj.weight"),
        "b_down": stacked("mlp.c_proj.bias"),
        "attn_norm": stacked("ln_1.weight"),
        "attn_norm_bias": stacked("ln_1.bias"),
        "mlp_norm": stacked("ln_2.weight"),
        "mlp_norm_bias": stacked("ln_2.bias"),
    }
    params = {
        "embed": w["transformer.wte.weight"],
        "positions": w["transformer.wpe.weight"],
        "blocks": blocks,
        "final_norm": w["transformer.ln_f.weight"],
        "final_norm_bias": w["transformer.ln_f.bias"],
    }
    agree(torch, model, params, cfg, forward_of)


def test_logits_are_those_of_llama(peers, forward_of):
    torch, transformers = peers
    cfg = dataclasses.replace(config("llama"), num_kv_heads=2, rope_layout="half")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=13,
            hidden_size=16,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            max_position_embeddings=12,
            attn_implementation="eager",
        )
    ).eval()
    w = randomised(torch, model)

    def stacked(name, *shape):
        """Their [out, in] -> ours [in, out]."""
        both = [w[f"model.layers.{n}.{name}.weight"].T for n in range(2)]
        return np.stack(both).reshape(2, *shape)

    blocks = {
        "wq": stacked("self_attn.q_proj", 16, 4, 4),
        "wk": stacked("self_attn.k_proj", 16, 2, 4),
        "wv": stacked("self_attn.v_proj", 16, 2, 4),
        "wo": stacked("self_attn.o_proj", 4, 4, 16),
        "w_gate": stacked("mlp.gate_proj", 16, 48),
        "w_up": stacked("mlp.up_proj", 16, 48),
        "w_down": stacked("mlp.down_proj", 48, 16),
        "attn_norm": stacked("input_layernorm", 16),
        "mlp_norm": stacked("post_attention_layernorm", 16),
    }
    params = {
        "embed": w["model.embed_tokens.weight"],
        "blocks": blocks,
        "final_norm": w["model.norm.weight"],
        "unembed": w["lm_head.weight"].T,
    }
    agree(torch, model, params, cfg, forward_of)
