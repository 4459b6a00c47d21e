"""Tiny random models as transformers makes them, for tests that compare with it."""

import numpy as np
import pytest

V, S = 29, 11
TOKENS = np.random.default_rng(0).integers(V, size=(2, S)).astype(np.int32)

_LLAMA = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "attn_implementation": "eager",
}
_GPT2 = {"vocab_size": V, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "eager"}

MODELS = {
    "llama": ("Llama", _LLAMA | {"head_dim": 6, "rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    "llama 3": (
        "Llama",
        _LLAMA
        | {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 300.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 40,
            },
        },
    ),
    "llama biased": ("Llama", _LLAMA | {"attention_bias": True}),
    "smollm2": ("Llama", _LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _LLAMA | {"sliding_window": 4}),
    "qwen2": ("Qwen2", _LLAMA),
    "qwen2 window": (
        "Qwen2",
        _LLAMA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
    ),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "gpt2": ("GPT2", _GPT2),
    "gpt2 untied": ("GPT2", _GPT2 | {"tie_word_embeddings": False, "n_inner": 20}),
}


def peers():
    """(torch, transformers), or the test is skipped."""
    return pytest.importorskip("torch"), pytest.importorskip("transformers")


def make(name, **changes):
    """A model of `MODELS` whose every weight is random, gains and biases included."""
    torch, transformers = peers()
    family, settings = MODELS[name]
    torch.manual_seed(0)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{family}Config")(**settings | changes)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.2 * torch.randn_like(w))
    return model


def logits_of(model, tokens=TOKENS):
    torch, _ = peers()
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.float().numpy()


def load(model_class, folder):
    """A folder read by transformers, every weight found."""
    model, report = model_class.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()
