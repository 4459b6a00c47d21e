"""GGUF files: their header read and checked here, their tensors dequantised by the package gguf.

Source: the format's description in ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.interop.architectures import LLAMA_TENSORS
from jaxlm.interop.tensors import Stored, Table, Tensor
from jaxlm.models.transformer import TransformerConfig

_SCALARS = "BbHhIif?"  # by number of the type; then string, array, and these three
_LATER = {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_NAMES = {  # of llama.cpp, in place of Hugging Face's
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "unembed": "output.weight",
    "blocks/attn_norm": "blk.{}.attn_norm.weight",
    "blocks/mlp_norm": "blk.{}.ffn_norm.weight",
    "blocks/wq": "blk.{}.attn_q.weight",
    "blocks/wk": "blk.{}.attn_k.weight",
    "blocks/wv": "blk.{}.attn_v.weight",
    "blocks/wo": "blk.{}.attn_output.weight",
    "blocks/bq": "blk.{}.attn_q.bias",
    "blocks/bk": "blk.{}.attn_k.bias",
    "blocks/bv": "blk.{}.attn_v.bias",
    "blocks/bo": "blk.{}.attn_output.bias",
    "blocks/w_gate": "blk.{}.ffn_gate.weight",
    "blocks/w_up": "blk.{}.ffn_up.weight",
    "blocks/w_down": "blk.{}.ffn_down.weight",
}
# llama.cpp reorders the rows of q and k of this architecture so that RoPE's pairs lie side by side.
TENSORS: Table = {path: Tensor(n, LLAMA_TENSORS[path].transposed) for path, n in _NAMES.items()}


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """fields: the metadata by key. tensors: by name, read when asked for."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def open_gguf(path: Path) -> GgufFile:
    """Reads the header; every count and offset in it is held against the size of the file.

    Raises:
      ConfigError: not a GGUF file, truncated, a version other than 2 and 3, a header that promises
        more than the file has, a tensor outside of it or of an unknown type; gguf is not installed.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except (OSError, ValueError) as error:  # mmap refuses an empty file
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def config_from_gguf(file: GgufFile) -> TransformerConfig:
    """The model of a file, RoPE in the layout `half`.

    Raises:
      ConfigError: an architecture or a feature that the block does not have; a field is missing.
    """
    fields, where = file.fields, file.path
    name = fields.get("general.architecture")
    if name != "llama":
        raise ConfigError(
            f"{where}: the architecture {name!r} cannot be read from GGUF, only llama"
        )
    for key, plain in (
        ("rope.scaling.type", "none"),
        ("expert_count", 0),
        ("attention.sliding_window", 0),
    ):
        if (value := fields.get(f"llama.{key}", plain)) != plain:
            raise ConfigError(f"{where}: llama.{key}={value!r} is a feature jaxlm does not have")
    if "rope_freqs.weight" in file.tensors:
        raise ConfigError(f"{where}: rope_freqs.weight scales RoPE, which jaxlm does not do")

    def need(key: str, kind: type = int, default: Any = None) -> Any:
        value = fields.get(f"llama.{key}", default)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or kind(value) != value:
            raise ConfigError(f"{where}: llama.{key}={value!r}: expected {kind.__name__}")
        return kind(value)

    heads, width = need("attention.head_count"), need("embedding_length")
    if heads < 1 or "token_embd.weight" not in file.tensors:
        raise ConfigError(f"{where}: has no attention.head_count or no token_embd.weight")
    head_dim = need("attention.key_length", default=width // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if (value := fields.get(f"llama.{key}", head_dim)) != head_dim:
            raise ConfigError(
                f"{where}: llama.{key}={value!r}: jaxlm needs {head_dim}, the size of a head"
            )
    try:
        return TransformerConfig(
            vocab_size=file.tensors["token_embd.weight"].shape[0],
            context_length=need("context_length"),
            num_layers=need("block_count"),
            d_model=width,
            num_heads=heads,
            num_kv_heads=need("attention.head_count_kv", default=heads),
            head_dim=head_dim,
            d_ff=need("feed_forward_length"),
            norm_eps=_shortest(need("attention.layer_norm_rms_epsilon", float)),
            rope_layout="half",
            rope_theta=_shortest(need("rope.freq_base", float, 10_000.0)),
            tied_head="output.weight" not in file.tensors,
            bias="blk.0.attn_output.bias" in file.tensors,
            qkv_bias=(
                "blk.0.attn_q.bias" in file.tensors and "blk.0.attn_output.bias" not in file.tensors
            ),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {error}") from None


def _shortest(value: float) -> float:
    """The number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if abs(value) < 3.4e38 else value


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "reading GGUF needs the package gguf: pip install 'jaxlm[gguf]' (or gguf alone)"
        ) from None
    return gguf


class _Reader:
    """Takes values off the front of a file; ConfigError where it ends too soon."""

    def __init__(self, path: Path, data: Any):
        self.path, self.data, self.at = path, data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ConfigError(
                f"{self.path}: truncated, or its header lies: {size} bytes wanted at byte "
                f"{self.at}, the file has {len(self.data)}"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: a text in its header is not UTF-8") from None

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and not nested:
            kind, count = self.number("I"), self.number("Q")
            if kind not in (_STRING, _ARRAY):
                code = self._code(kind)
                raw = self.take(count * struct.calcsize(f"<{code}"))
                return list(struct.unpack(f"<{count}{code}", raw))
            return [self.value(kind, nested=True) for _ in self._counted(count)]
        return self.number(self._code(kind))

    def _counted(self, count: int) -> range:
        if count > len(self.data) - self.at:  # each would take a byte at least
            self.take(count)
        return range(count)

    def _code(self, kind: int) -> str:
        code = _SCALARS[kind] if kind < len(_SCALARS) else _LATER.get(kind)
        if code is None:
            raise ConfigError(f"{self.path}: a value of the unknown type {kind} in its header")
        return code


def _parse(path: Path, data: Any) -> GgufFile:
    reader = _Reader(path, data)
    if reader.take(min(4, len(data))) != b"GGUF":
        raise ConfigError(f"{path}: not a GGUF file")
    gguf = _package()
    if (version := reader.number("I")) not in (2, 3):
        raise ConfigError(f"{path}: GGUF version {version}, jaxlm reads 2 and 3 (little-endian)")
    num_tensors, num_fields = reader.number("Q"), reader.number("Q")
    fields = {}
    for _ in reader._counted(num_fields):
        key = reader.string()
        fields[key] = reader.value(reader.number("I"))
    infos = []
    for _ in reader._counted(num_tensors):
        name, num_dims = reader.string(), reader.number("I")
        if num_dims > 4:
            raise ConfigError(
                f"{path}: tensor {name} has {num_dims} dimensions, at most 4 are read"
            )
        dims = [reader.number("Q") for _ in range(num_dims)]
        infos.append((name, tuple(dims[::-1]), reader.number("I"), reader.number("Q")))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ConfigError(f"{path}: general.alignment={alignment!r}")
    base = -(-reader.at // alignment) * alignment
    tensors, spans = {}, []
    for name, shape, kind, offset in infos:
        try:
            quant = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
        except (ValueError, KeyError):
            raise ConfigError(f"{path}: tensor {name} has the unknown type {kind}") from None
        if name in tensors:
            raise ConfigError(f"{path}: tensor {name} is there twice")
        if not shape or shape[-1] % block:
            raise ConfigError(
                f"{path}: tensor {name} {list(shape)}: a row of {quant.name} is made of "
                f"blocks of {block}"
            )
        size, start = math.prod(shape) // block * block_bytes, base + offset
        if start + size > len(data):
            raise ConfigError(
                f"{path}: truncated: tensor {name} ends at byte {start + size}, the file has "
                f"{len(data)}"
            )
        spans.append((start, start + size, name))
        read = functools.partial(_read, gguf, path, name, start, size, shape, quant)
        tensors[name] = Stored(shape, read)
    spans.sort()
    for (_, end, before), (start, _, name) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ConfigError(f"{path}: tensors {before} and {name} overlap at byte {start}")
    return GgufFile(path, fields, tensors)


def _read(
    gguf: Any, path: Path, name: str, start: int, size: int, shape: tuple[int, ...], quant: Any
) -> np.ndarray:
    raw = np.fromfile(path, np.uint8, count=size, offset=start)
    if raw.size != size:
        raise ConfigError(f"{path}: truncated while it was read, in tensor {name}")
    try:
        values = gguf.dequantize(raw.reshape(*shape[:-1], -1), quant)
    except NotImplementedError:
        raise ConfigError(
            f"{path}: tensor {name}: the package gguf cannot dequantise {quant.name}"
        ) from None
    return np.asarray(values, np.float32).reshape(shape)
