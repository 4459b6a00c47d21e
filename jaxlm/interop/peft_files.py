"""LoRA adapters in the layout of PEFT: adapter_model.safetensors and adapter_config.json.

Source: the LoraConfig and LoraLayer of peft 0.15 to 0.21.
"""

import json
from pathlib import Path
from typing import Any

from jaxlm.core import trees
from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.interop import safetensors_files, tensors
from jaxlm.interop.architectures import Architecture, config_to_json, has_interleaved_rope
from jaxlm.interop.tensors import Table, Tensor
from jaxlm.models import lora
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig, param_specs
from jaxlm.tokenizers.saved import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Keys of adapter_config.json that change nothing of the sum W + scale * B A.
_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"),
    *("target_modules", "exclude_modules", "fan_in_fan_out", "lora_dropout", "peft_version"),
    *("ephemeral_gpu_offload", "ensure_weight_tying", "qalora_group_size", "megatron_core"),
    *("loftq_config", "runtime_config"),
)


def load_adapters(folder: Path, base: TransformerConfig) -> tuple[LoraConfig, Params]:
    """The adapters of a PEFT folder for a model, as `lora.adapter_specs` has them.

    Raises:
      ConfigError: another kind of adapter or a feature of PEFT that ours do not have; a tensor that
        is missing (every layer must have one), extra, or of another shape.
    """
    where = folder / CONFIG_FILE
    values = read_json(where)
    cfg = _lora_config(values, where)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"{folder}: holds no {WEIGHTS_FILE}; save the adapter with safe_serialization"
        )
    found = safetensors_files.open_file(folder / WEIGHTS_FILE)
    arch, _ = config_to_json(base)
    specs = param_specs(base)
    matrices = lora.target_specs(specs, (lora.ALL,))
    paths = [path for path in matrices if _names(arch.tensors[path])[0].format(0) in found]
    if not paths:
        raise ConfigError(f"{folder / WEIGHTS_FILE}: adapts no matrix of a {arch.model_type}")
    targets = tuple(path.rpartition(trees.SEPARATOR)[2] for path in paths)
    cfg = LoraConfig(rank=cfg.rank, alpha=cfg.alpha, scaling=cfg.scaling, targets=targets)
    adapters = lora.adapter_specs(specs, cfg)
    table = _table(arch, paths)
    tensors.check(found, table, adapters, str(folder / WEIGHTS_FILE))
    reorder = tensors.interleaved_from_half if has_interleaved_rope(base) else None
    return cfg, tensors.assemble(found, table, adapters, reorder)


def save_adapters(
    folder: Path, base: TransformerConfig, cfg: LoraConfig, adapters: Params, base_name: str | None
) -> None:
    """Writes the adapters of a model, float32, into an existing folder.

    Args:
      base_name: where the weights are that they are added to, for the reader.
    Raises:
      ConfigError: no architecture of transformers computes the model, or it has an adapted matrix
        only as a part of a larger one.
    """
    arch, _ = config_to_json(base)
    specs = param_specs(base)
    paths = list(lora.target_specs(specs, cfg.targets))
    table = _table(arch, paths)
    reorder = tensors.half_from_interleaved if has_interleaved_rope(base) else None
    stored = tensors.disassemble(adapters, table, lora.adapter_specs(specs, cfg), reorder)
    safetensors_files.write_file(folder / WEIGHTS_FILE, dict(stored))
    modules = [arch.tensors[path] for path in paths]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": cfg.rank,
        "lora_alpha": cfg.alpha,
        "use_rslora": cfg.scaling == "alpha_over_sqrt_r",
        # The two last names of a module tell attn.c_proj from mlp.c_proj.
        "target_modules": [".".join(t.name.split(".")[-3:-1]) for t in modules],
        "fan_in_fan_out": not all(tensor.transposed for tensor in modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _names(tensor: Tensor) -> tuple[str, str]:
    module = tensor.name.removesuffix(".weight")
    a, b = (f"base_model.model.{module}.lora_{x}.weight" for x in "AB")
    return a, b


def _table(arch: Architecture, paths: list[str]) -> Table:
    """Where A, as [R, inputs], and B, as [outputs, R], of each matrix lie."""
    table = {}
    for path in paths:
        if arch.tensors[path].part != (0, 1):
            raise ConfigError(
                f"lora.targets: {path} is only a part of {arch.tensors[path].name} in "
                f"{arch.model_type}, which PEFT adapts as a whole; merge the adapters instead"
            )
        for ours, name in zip((lora.A, lora.B), _names(arch.tensors[path]), strict=True):
            table[f"{path}{trees.SEPARATOR}{ours}"] = Tensor(name, transposed=True)
    return table


def _lora_config(values: dict[str, Any], where: Path) -> LoraConfig:
    values = dict(values)
    if (kind := values.pop("peft_type", None)) != "LORA":
        raise ConfigError(f"{where}: peft_type={kind!r}: only LORA is read")
    rank, alpha = values.pop("r", None), values.pop("lora_alpha", None)
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if type(rank) is not int or not number:
        raise ConfigError(f"{where}: r={rank!r}, lora_alpha={alpha!r}: expected numbers")
    scaling = "alpha_over_sqrt_r" if values.pop("use_rslora", False) else "alpha_over_r"
    # Other ways to initialise change the base too.
    plain = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", None)}
    for key, value in values.items():
        fine = value in plain[key] if key in plain else key in _WITHOUT_EFFECT or not value
        if not fine:
            raise ConfigError(f"{where}: {key}={value!r} is a feature that jaxlm does not have")
    try:
        return LoraConfig(rank=rank, alpha=float(alpha), scaling=scaling)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from None
