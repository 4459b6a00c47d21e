"""The architectures of Hugging Face's transformers that our block computes exactly.

Each is one declaration: where its weights lie, and what its config.json says in our words. A
feature that the block does not have is refused by name, never passed over.

Source: the modelling code and config classes of transformers 4.50 to 5.24.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxlm.core.config import ConfigError
from jaxlm.interop.tensors import Table, Tensor
from jaxlm.models.transformer import TransformerConfig


def _linear(name: str) -> Tensor:
    return Tensor(name, transposed=True)


_LAYER = "model.layers.{}."
LLAMA_TENSORS: Table = {
    "embed": Tensor("model.embed_tokens.weight"),
    "blocks/attn_norm": Tensor(_LAYER + "input_layernorm.weight"),
    "blocks/wq": _linear(_LAYER + "self_attn.q_proj.weight"),
    "blocks/wk": _linear(_LAYER + "self_attn.k_proj.weight"),
    "blocks/wv": _linear(_LAYER + "self_attn.v_proj.weight"),
    "blocks/wo": _linear(_LAYER + "self_attn.o_proj.weight"),
    "blocks/bq": Tensor(_LAYER + "self_attn.q_proj.bias"),
    "blocks/bk": Tensor(_LAYER + "self_attn.k_proj.bias"),
    "blocks/bv": Tensor(_LAYER + "self_attn.v_proj.bias"),
    "blocks/bo": Tensor(_LAYER + "self_attn.o_proj.bias"),
    "blocks/q_norm": Tensor(_LAYER + "self_attn.q_norm.weight"),
    "blocks/k_norm": Tensor(_LAYER + "self_attn.k_norm.weight"),
    "blocks/mlp_norm": Tensor(_LAYER + "post_attention_layernorm.weight"),
    "blocks/w_gate": _linear(_LAYER + "mlp.gate_proj.weight"),
    "blocks/w_up": _linear(_LAYER + "mlp.up_proj.weight"),
    "blocks/w_down": _linear(_LAYER + "mlp.down_proj.weight"),
    "final_norm": Tensor("model.norm.weight"),
    "unembed": _linear("lm_head.weight"),
}

_H = "transformer.h.{}."
GPT2_TENSORS: Table = {  # its Conv1D stores [inputs, outputs]
    "embed": Tensor("transformer.wte.weight"),
    "positions": Tensor("transformer.wpe.weight"),
    "blocks/attn_norm": Tensor(_H + "ln_1.weight"),
    "blocks/attn_norm_bias": Tensor(_H + "ln_1.bias"),
    "blocks/wq": Tensor(_H + "attn.c_attn.weight", part=(0, 3)),
    "blocks/wk": Tensor(_H + "attn.c_attn.weight", part=(1, 3)),
    "blocks/wv": Tensor(_H + "attn.c_attn.weight", part=(2, 3)),
    "blocks/bq": Tensor(_H + "attn.c_attn.bias", part=(0, 3)),
    "blocks/bk": Tensor(_H + "attn.c_attn.bias", part=(1, 3)),
    "blocks/bv": Tensor(_H + "attn.c_attn.bias", part=(2, 3)),
    "blocks/wo": Tensor(_H + "attn.c_proj.weight"),
    "blocks/bo": Tensor(_H + "attn.c_proj.bias"),
    "blocks/mlp_norm": Tensor(_H + "ln_2.weight"),
    "blocks/mlp_norm_bias": Tensor(_H + "ln_2.bias"),
    "blocks/w_up": Tensor(_H + "mlp.c_fc.weight"),
    "blocks/b_up": Tensor(_H + "mlp.c_fc.bias"),
    "blocks/w_down": Tensor(_H + "mlp.c_proj.weight"),
    "blocks/b_down": Tensor(_H + "mlp.c_proj.bias"),
    "final_norm": Tensor("transformer.ln_f.weight"),
    "final_norm_bias": Tensor("transformer.ln_f.bias"),
    "unembed": _linear("lm_head.weight"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model_type of config.json.

    class_name: the class that transformers makes of it. tensors: by our path. prefix: of the names
    of all tensors but the head's; files of the bare model leave it out. buffers: endings of tensors
    that old files hold and that are no weights. fields: our fields by their keys of config.json.
    always: our fields that every such model has. needs: keys whose value must be this one where
    they are given. defaults: what a missing key means.
    """

    model_type: str
    class_name: str
    tensors: Table
    prefix: str
    buffers: tuple[str, ...]
    fields: Mapping[str, str]
    always: Mapping[str, Any]
    needs: Mapping[str, Any]
    defaults: Mapping[str, Any]


_SIZES = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "num_layers",
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "d_ff",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "tied_head",
}
_ROPE = {"partial_rotary_factor": 1.0, "rope_interleaved": False, "pretraining_tp": 1}
_LLAMA3 = (  # in the order of TransformerConfig.rope_scaling
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
# What is the same in every model we can read; the fields not named are free.
_PLAIN = {
    "norm_placement": "pre",
    "residual": 1.0,
    "causal": True,
    "attention_softcap": None,
    "logit_softcap": None,
    "head_bias": False,
}
_ROTARY = {**_PLAIN, "norm": "rms", "activation": "swiglu", "positions": "rope"}


def _llama_like(model_type: str, class_name: str, **changed: Any) -> Architecture:
    base = {
        "tensors": LLAMA_TENSORS,
        "prefix": "model.",
        "buffers": (".rotary_emb.inv_freq",),
        "fields": _SIZES,
        "needs": {"hidden_act": "silu", **_ROPE},
        "defaults": _DEFAULTS,
    }
    return Architecture(model_type=model_type, class_name=class_name, **base | changed)


ARCHITECTURES = {
    arch.model_type: arch
    for arch in (
        _llama_like(
            "llama",
            "LlamaForCausalLM",
            fields={**_SIZES, "attention_bias": "bias"},
            always={**_ROTARY, "qk_norm": False, "qkv_bias": False, "window": None},
            needs={"hidden_act": "silu", "mlp_bias": False, **_ROPE},
            defaults={**_DEFAULTS, "attention_bias": False},
        ),
        _llama_like(
            "mistral",
            "MistralForCausalLM",
            fields={**_SIZES, "sliding_window": "window"},
            always={**_ROTARY, "qk_norm": False, "qkv_bias": False, "bias": False},
            defaults={**_DEFAULTS, "sliding_window": 4096, "num_key_value_heads": 8},
        ),
        _llama_like(
            "qwen2",
            "Qwen2ForCausalLM",
            fields={**_SIZES, "sliding_window": "window"},
            always={**_ROTARY, "qk_norm": False, "qkv_bias": True, "bias": False},
            defaults={**_DEFAULTS, "sliding_window": None, "num_key_value_heads": 32},
        ),
        _llama_like(
            "qwen3",
            "Qwen3ForCausalLM",
            fields={**_SIZES, "sliding_window": "window", "attention_bias": "bias"},
            always={**_ROTARY, "qk_norm": True, "qkv_bias": False},
            defaults={
                **_DEFAULTS,
                "sliding_window": None,
                "attention_bias": False,
                "num_key_value_heads": 32,
                "head_dim": 128,
            },
        ),
        Architecture(
            model_type="gpt2",
            class_name="GPT2LMHeadModel",
            tensors=GPT2_TENSORS,
            prefix="transformer.",
            buffers=(".attn.bias", ".attn.masked_bias"),
            fields={
                "vocab_size": "vocab_size",
                "n_positions": "context_length",
                "n_layer": "num_layers",
                "n_embd": "d_model",
                "n_head": "num_heads",
                "n_inner": "d_ff",
                "layer_norm_epsilon": "norm_eps",
                "tie_word_embeddings": "tied_head",
            },
            always={
                **_PLAIN,
                "norm": "layer",
                "activation": "gelu",
                "positions": "learned",
                "bias": True,
                "qkv_bias": False,
                "qk_norm": False,
                "window": None,
            },
            needs={
                "activation_function": "gelu_new",
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
            defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "n_inner": None},
        ),
    )
}

REASONS = {  # known models that the block would compute wrongly
    "gemma": "its feed-forward is gated by GELU, its gains are 1 + w and its embedding is scaled",
    "gemma2": "it has GELU gates, norms on both sides of a branch and windows by layer",
    "gemma3_text": "it has GELU gates, norms on both sides of a branch and windows by layer",
    "mixtral": "its feed-forward is a mixture of experts",
    "phi3": "its projections are fused and its RoPE may be scaled by length",
    "gpt_neox": "its attention and feed-forward run side by side",
    "falcon": "its attention and feed-forward run side by side",
}

# Keys of config.json that change neither a weight nor a logit.
_WITHOUT_EFFECT = (
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache"),
    *("_name_or_path", "name_or_path", "auto_map", "transformers.js_config", "is_llama_config"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range"),
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"),
    *("summary_use_proj", "task_specific_params", "n_ctx", "reorder_and_upcast_attn"),
    *("max_window_layers", "gradient_checkpointing", "_attn_implementation"),
    *("_attn_implementation_autoset", "id2label", "label2id", "license"),
)


def architecture_of(values: Mapping[str, Any], where: str) -> Architecture:
    """The one that a config.json names; ConfigError where it is not among `ARCHITECTURES`."""
    model_type = values.get("model_type")
    if model_type not in ARCHITECTURES:
        reason = f": {REASONS[model_type]}" if model_type in REASONS else ""
        raise ConfigError(
            f"{where}: model_type {model_type!r} cannot be represented{reason} (known: "
            f"{', '.join(ARCHITECTURES)})"
        )
    return ARCHITECTURES[model_type]


def config_from_json(values: Mapping[str, Any], where: str) -> TransformerConfig:
    """The model of a config.json, RoPE in the layout `half`.

    Raises:
      ConfigError: an architecture, a feature or a key that the block does not have; a key that is
        missing or of another type.
    """
    arch = architecture_of(values, where)
    values, rope_scaling = _rope(_same_layers(dict(values), where), where)
    values = dict(arch.defaults) | values
    for key, needed in arch.needs.items():
        if (value := values.pop(key, needed)) not in (needed, None):
            raise ConfigError(
                f"{where}: {key}={value!r} is a feature that jaxlm does not have ({key}={needed!r})"
            )
    ours = {ours: values.pop(theirs, None) for theirs, ours in arch.fields.items()}
    for key, value in values.items():
        if key not in _WITHOUT_EFFECT and value not in (None, False):
            raise ConfigError(f"{where}: {key}={value!r} is a feature that jaxlm does not have")
    for theirs, name in arch.fields.items():
        declared = TransformerConfig.__dataclass_fields__[name].type
        wanted = bool if declared is bool else float if declared is float else int
        value = ours[name]
        if value is None and name not in ("num_kv_heads", "head_dim", "d_ff", "window"):
            raise ConfigError(f"{where}: {theirs} is missing")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (
            isinstance(value, bool) if wanted is bool else number and wanted(value) == value
        ):
            raise ConfigError(f"{where}: {theirs}={value!r}: expected {wanted.__name__}")
        if value is not None:
            ours[name] = wanted(value)  # 2.0 layers are 2
    rotary = {}
    if arch.always["positions"] == "rope":
        rotary = {"rope_layout": "half", "rope_scaling": rope_scaling}
    given = {name: value for name, value in ours.items() if value is not None}
    try:
        cfg = TransformerConfig(**{**arch.always, **given, **rotary})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    sizes = cfg.sizes
    filled = {"num_kv_heads": sizes.K, "head_dim": sizes.Dh, "d_ff": sizes.F}
    return dataclasses.replace(cfg, **filled)


def config_to_json(cfg: TransformerConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that computes what `cfg` does, and its config.json.

    Raises:
      ConfigError: transformers has none, as far as we know; names the nearest and what differs.
    """
    if not isinstance(cfg, TransformerConfig):
        raise ConfigError(f"model.kind={cfg.kind}: only kind=transformer can be exported")
    arch = min(ARCHITECTURES.values(), key=lambda arch: len(_differences(cfg, arch)))
    if different := _differences(cfg, arch):
        raise ConfigError(
            f"no architecture of transformers that jaxlm knows has this model's "
            f"{', '.join(different)} (nearest: {arch.model_type})"
        )
    sizes = cfg.sizes
    if arch.model_type == "gpt2" and (sizes.K != sizes.H or sizes.H * sizes.Dh != sizes.D):
        raise ConfigError(
            f"gpt2 has num_heads = num_kv_heads and head_dim = d_model / num_heads; this model "
            f"num_heads={sizes.H}, num_kv_heads={sizes.K}, head_dim={sizes.Dh}"
        )
    filled = {"num_kv_heads": sizes.K, "head_dim": sizes.Dh, "d_ff": sizes.F}
    ours = {**{name: getattr(cfg, name) for name in arch.fields.values()}, **filled}
    values = {
        "model_type": arch.model_type,
        "architectures": [arch.class_name],
        "dtype": "float32",
        "torch_dtype": "float32",
        **{key: value for key, value in arch.needs.items() if key not in _ROPE},
        **{theirs: ours[name] for theirs, name in arch.fields.items()},
    }
    if "rope_theta" in values:
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": cfg.rope_theta}
        if cfg.rope_scaling is not None:
            scaling = dict(zip(_LLAMA3, cfg.rope_scaling, strict=True))
            scaling[_LLAMA3[-1]] = int(scaling[_LLAMA3[-1]])
            values["rope_parameters"] |= {"rope_type": "llama3", **scaling}
    if arch.model_type in ("qwen2", "qwen3") and cfg.window:
        values |= {"use_sliding_window": True, "max_window_layers": 0}
        values["layer_types"] = ["sliding_attention"] * cfg.num_layers
    return arch, values


def has_interleaved_rope(cfg: TransformerConfig) -> bool:
    """Whether what RoPE turns is in another order here than in files of transformers."""
    return cfg.positions == "rope" and cfg.rope_layout == "interleaved"


def _differences(cfg: TransformerConfig, arch: Architecture) -> list[str]:
    given = {name: getattr(cfg, name) for name in arch.always}
    return [f"{name}={value}" for name, value in given.items() if value != arch.always[name]]


def _rope(values: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[float, ...] | None]:
    """`values` with RoPE's base as `rope_theta`, and its scaling; one we do not have is refused."""
    scaling = None
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.pop(key, None) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        extra = {name for name, value in rope.items() if value is not None}
        extra -= {"rope_type", "type", "rope_theta"}
        if rope.get("partial_rotary_factor") == 1.0:
            extra -= {"partial_rotary_factor"}
        if kind == "llama3" and extra <= set(_LLAMA3):
            given = {_LLAMA3[-1]: values.get("max_position_embeddings")} | rope
            scaling = tuple(given.get(name) for name in _LLAMA3)
            if not all(isinstance(x, int | float) and x is not True and x > 0 for x in scaling):
                raise ConfigError(
                    f"{where}: {key}={rope!r}: expected numbers: {', '.join(_LLAMA3)}"
                )
            scaling = tuple(float(number) for number in scaling if number is not None)
        elif kind != "default" or extra:
            raise ConfigError(
                f"{where}: {key}={rope!r}: jaxlm's RoPE is scaled as Llama 3's or not, and never "
                "partial"
            )
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
    return values, scaling


def _same_layers(values: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` whose `sliding_window` holds for every layer; windows in some only are refused."""
    uses = values.pop("use_sliding_window", None)
    if uses is False:
        values["sliding_window"] = None
    kinds = values.pop("layer_types", None)
    if kinds is None and uses:
        first, layers = values.get("max_window_layers", 28), values.get("num_hidden_layers", 0)
        kinds = ["full_attention"] * (min(first, layers) > 0)
        kinds += ["sliding_attention"] * (layers > first)
    kinds = set(kinds or [])
    if kinds - {"full_attention", "sliding_attention"} or len(kinds) > 1:
        raise ConfigError(
            f"{where}: layers of the kinds {', '.join(sorted(kinds))}: jaxlm has one attention for "
            "all layers"
        )
    if kinds == {"full_attention"}:
        values["sliding_window"] = None
    return values
