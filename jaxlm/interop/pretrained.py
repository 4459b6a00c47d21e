"""A whole model from a Hugging Face folder or a GGUF file, and into a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.interop import gguf_files, safetensors_files, tensors
from jaxlm.interop.architectures import (
    architecture_of,
    config_from_json,
    config_to_json,
    has_interleaved_rope,
)
from jaxlm.interop.tensors import Stored
from jaxlm.models.transformer import TransformerConfig, param_specs
from jaxlm.tokenizers import Tokenizer, hugging_face
from jaxlm.tokenizers.saved import read_json

CONFIG_FILE = "config.json"
_HEAD = "lm_head.weight"
SPECIAL = ("bos_token", "eos_token", "pad_token")  # whose ids config.json holds


class Weights(NamedTuple):
    """A model as numbers. params: float32 numpy arrays, whatever the file's dtype."""

    cfg: TransformerConfig
    params: Params


def is_pretrained(path: str | Path) -> bool:
    """Whether there is a file, or a folder of Hugging Face's form; what is in it is not checked."""
    path = Path(path)
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        try:
            return "model_type" in read_json(path / CONFIG_FILE)
        except ConfigError:
            return False
    return path.is_file()


def load_config(source: str | Path) -> TransformerConfig:
    """The model of a source without its weights; errors as `load_weights`."""
    source = Path(source)
    if not source.is_dir():
        return gguf_files.config_from_gguf(gguf_files.open_gguf(source))
    where = source / CONFIG_FILE
    if not where.is_file():
        raise ConfigError(f"{source}: holds no {CONFIG_FILE}; expected a Hugging Face folder")
    values = read_json(where)
    try:
        return config_from_json(values, str(where))
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: malformed ({error})") from None


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a source.

    Raises:
      ConfigError: there is none, it does not match the weights, or ours would encode otherwise.
    """
    source, rows = Path(source), load_config(source).sizes.V
    if source.is_dir():
        return hugging_face.read_tokenizer_json(source, rows)
    fields = gguf_files.open_gguf(source).fields
    return hugging_face.tokenizer_from_gguf(fields, rows, str(source))


def load_usage(source: str | Path) -> dict[str, Any]:
    """The "chat_template" and "bos_token", "eos_token", ..., as far as the source states them.

    And "model_max_length", the tokens that the model looks back on.
    """
    source = Path(source)
    if source.is_dir():
        usage = hugging_face.usage_from_folder(source)
    else:
        usage = hugging_face.usage_from_gguf(gguf_files.open_gguf(source).fields)
    return {**usage, "model_max_length": load_config(source).context_length}


def load_weights(source: str | Path) -> Weights:
    """The model of a Hugging Face folder, or of a GGUF file of the architecture llama.

    Tensors are read one at a time, so the peak of memory is about that of the result.

    Raises:
      ConfigError: anything the block cannot represent exactly, and any file that is not what its
        header says; one line that names the file and the tensor or field. Nothing is executed.
    """
    source = Path(source)
    if not source.is_dir():
        return _load_gguf(source)
    cfg = load_config(source)
    arch = architecture_of(read_json(source / CONFIG_FILE), str(source))
    specs = param_specs(cfg)
    found = safetensors_files.open_folder(source, arch.buffers)
    if not any(name.startswith(arch.prefix) for name in found):  # of the model without its head
        found = {name if name == _HEAD else arch.prefix + name: x for name, x in found.items()}
    head = found.pop(_HEAD, None) if cfg.tied_head else None
    tensors.check(found, arch.tensors, specs, str(source))
    if head is not None:
        _check_tied(head, found[arch.tensors["embed"].name], source)
    return Weights(cfg, tensors.assemble(found, arch.tensors, specs))


def save_weights(
    folder: Path,
    cfg: TransformerConfig,
    params: Params,
    shard_bytes: int = safetensors_files.SHARD_BYTES,
    special_ids: Mapping[str, int] | None = None,
) -> None:
    """Writes config.json and the weights, float32, into an existing folder.

    Args:
      special_ids: {"eos_token": 2, ...}, the ids of `SPECIAL`. Those that are missing are written
        as null: where a Llama's eos_token_id is missing, transformers takes it to be 2.
    Raises:
      ConfigError: no architecture of transformers computes this model.
    """
    arch, values = config_to_json(cfg)
    reorder = tensors.half_from_interleaved if has_interleaved_rope(cfg) else None
    stored = tensors.disassemble(params, arch.tensors, param_specs(cfg), reorder)
    safetensors_files.write_folder(folder, stored, shard_bytes)
    values |= {f"{name}_id": (special_ids or {}).get(name) for name in SPECIAL}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _load_gguf(path: Path) -> Weights:
    file = gguf_files.open_gguf(path)
    cfg = gguf_files.config_from_gguf(file)
    specs = param_specs(cfg)
    tensors.check(file.tensors, gguf_files.TENSORS, specs, str(path))
    reorder = tensors.half_from_interleaved
    return Weights(cfg, tensors.assemble(file.tensors, gguf_files.TENSORS, specs, reorder))


def _check_tied(head: Stored, embed: Stored, source: Path) -> None:
    if head.shape != embed.shape or not np.array_equal(head.read(), embed.read()):
        raise ConfigError(
            f"{source}: tie_word_embeddings is true, but {_HEAD} is not the embedding; which of "
            "them is meant? Remove it, or set tie_word_embeddings to false"
        )
