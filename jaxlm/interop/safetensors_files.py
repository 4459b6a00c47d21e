"""Safetensors files, checked before the library reads them, and whole folders of them.

Source: the format's description, https://huggingface.co/docs/safetensors: eight bytes of length,
a JSON header, then the tensors without a gap.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (numpy learns the name bfloat16 from it)
import numpy as np

from jaxlm.core import json_forms
from jaxlm.core.config import ConfigError
from jaxlm.interop.tensors import Stored
from jaxlm.tokenizers.saved import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 2 << 30  # while a folder is written, so much is held beside the model

_LARGEST_HEADER = 100_000_000  # the library's own limit
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # of a file beside the index, never a path
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
_SIZES = {
    **_FLOATS,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16"), 2),
    **dict.fromkeys(("U32", "I32"), 4),
    **dict.fromkeys(("F64", "U64", "I64"), 8),
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def open_folder(folder: Path, buffers: tuple[str, ...] = ()) -> dict[str, Stored]:
    """{name: tensor} of model.safetensors, or of the shards that its index lists.

    Args:
      buffers: endings of names to leave out.
    Raises:
      ConfigError: no such file, a pickle in its place, or anything that `open_file` refuses.
    """
    if (folder / SINGLE).is_file():
        return open_file(folder / SINGLE, buffers)
    if not (folder / INDEX).is_file():
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in _PICKLES)
        if pickles:
            raise ConfigError(
                f"{folder}: {pickles[0]} is a pickle, which could run anything; convert the model "
                "to safetensors with save_pretrained of transformers"
            )
        raise ConfigError(f"{folder}: holds no {SINGLE}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ConfigError(f"{folder / INDEX}: expected weight_map, a file for each tensor")
    found: dict[str, Stored] = {}
    for file in sorted(set(weight_map.values())):
        if not _NAME.fullmatch(file):
            raise ConfigError(f"{folder / INDEX}: {file!r} is not the name of a file beside it")
        shard = open_file(folder / file, buffers)
        for name in shard:
            if weight_map.get(name) != file:
                raise ConfigError(
                    f"{folder / file}: holds tensor {name}, which {INDEX} has in "
                    f"{weight_map.get(name, 'no file')}"
                )
        found |= shard
    for name, file in weight_map.items():
        if name not in found and not name.endswith(buffers or ("\0",)):
            raise ConfigError(f"{folder / file}: tensor {name} is missing, {INDEX} lists it")
    return found


def open_file(path: Path, buffers: tuple[str, ...] = ()) -> dict[str, Stored]:
    """{name: tensor} of one file whose header has been found to be true of it.

    Raises:
      ConfigError: a file that is truncated or longer than its header says, a header that is no
        JSON of the format, tensors that overlap, leave a gap, lie outside or have another size than
        their shape, or a dtype other than F32, F16 and BF16.
    """
    found = {}
    for name, entry in _header(path).items():
        if buffers and name.endswith(buffers):
            continue
        if entry["dtype"] not in _FLOATS:
            raise ConfigError(
                f"{path}: tensor {name} has dtype {entry['dtype']}, expected one of "
                f"{', '.join(_FLOATS)}"
            )
        found[name] = Stored(tuple(entry["shape"]), functools.partial(_read, path, name))
    return found


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes float32 arrays as one file of the format."""
    from safetensors.numpy import save_file

    save_file(tensors, path, metadata={"format": "pt"})  # older versions of transformers ask for it
    path.chmod(0o644)  # the library makes it the owner's alone


def write_folder(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes (name, array) pairs as model.safetensors, or as shards with their index.

    At most `shard_bytes` of them are held at once, or one tensor.
    """
    shards: list[list[str]] = []
    total = 0
    for held in _shards(tensors, shard_bytes):
        shards.append(list(held))
        total += sum(array.nbytes for array in held.values())
        write_file(folder / f"shard-{len(shards)}", held)
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    held: dict[str, np.ndarray] = {}
    for name, array in tensors:
        if held and sum(a.nbytes for a in held.values()) + array.nbytes > shard_bytes:
            yield held
            held = {}
        held[name] = array
    yield held


def _read(path: Path, name: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:  # changed since it was checked
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """{name: {"dtype", "shape", "data_offsets"}}, all of it true of the file."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ConfigError(
                    f"{path}: not a whole safetensors file: it has {size} bytes, and its header "
                    f"alone would have {length}"
                )
            text = file.read(length)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        header = json_forms.parse(text)
    except ValueError as error:
        raise ConfigError(f"{path}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    _check_offsets(path, header, size - 8 - length)
    return header


def _check_offsets(path: Path, header: Mapping[str, Any], size: int) -> None:
    spans = []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(path, name, entry)
        wanted = math.prod(shape) * _SIZES[dtype]
        if end - start != wanted:
            raise ConfigError(
                f"{path}: tensor {name} of {dtype} {shape} has {wanted} bytes, but lies at bytes "
                f"{start} to {end}"
            )
        spans.append((start, end, name))
    last, before = 0, ""
    for start, end, name in sorted(spans):
        if start < last:
            raise ConfigError(f"{path}: tensors {before} and {name} overlap at byte {start}")
        if start > last:
            raise ConfigError(f"{path}: no tensor holds the bytes {last} to {start}")
        last, before = end, name
    if last != size:
        what = "truncated" if last > size else "longer than its tensors"
        raise ConfigError(
            f"{path}: {what}: the tensors have {last} bytes by the header, the file {size}"
        )


def _entry(path: Path, name: str, entry: Any) -> tuple[str, list[int], int, int]:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
    except (KeyError, TypeError, ValueError):
        numbers = [-1]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ConfigError(f"{path}: tensor {name}: malformed entry {entry!r:.100} in the header")
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise ConfigError(
            f"{path}: tensor {name} has the unknown dtype {dtype!r}, expected one of "
            f"{', '.join(_FLOATS)}"
        )
    return dtype, shape, start, end
