"""Where each weight lies in a file, and the way between that layout and ours.

A table {our path: Tensor} says it once for both directions. What a table need not say follows from
the `ParamSpec`: a product's weight is a matrix [inputs, outputs] in files, heads and their channels
being one axis there, and layers are tensors of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core import trees
from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.params import ParamSpec
from jaxlm.models import lora

# Their last axis is the channels of a head, which RoPE turns in pairs.
ROTATED = ("wq", "wk", "bq", "bk", "q_norm", "k_norm")


class Tensor(NamedTuple):
    """One weight in a file.

    name: of the tensor; `{}` stands for the number of the layer. transposed: stored as [outputs,
    inputs]. part: (i, n), the i-th of n equal parts of its outputs.
    """

    name: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)


class Stored(NamedTuple):
    """A tensor of a file, not read yet. read: () -> float array of `shape`."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Table = Mapping[str, Tensor]
Reorder = Callable[[np.ndarray], np.ndarray]


def stored_shape(tensor: Tensor, spec: ParamSpec) -> tuple[int, ...]:
    """The shape in a file of one layer of a weight, all parts of the tensor together."""
    layer = spec.layer
    shape = layer.fans if layer.kind == "matrix" else layer.shape
    if layer.kind == "vector":
        shape = (layer.size,)
    *inputs, outputs = shape
    shape = (*inputs, outputs * tensor.part[1])
    return shape[::-1] if tensor.transposed else shape


def to_ours(stored: np.ndarray, tensor: Tensor, spec: ParamSpec) -> np.ndarray:
    """One layer of a weight, in the shape of its spec, from a tensor of `stored_shape`."""
    x = stored.T if tensor.transposed else stored
    index, parts = tensor.part
    size = x.shape[-1] // parts
    return x[..., index * size : (index + 1) * size].reshape(spec.layer.shape)


def to_stored(layer: np.ndarray, tensor: Tensor, spec: ParamSpec) -> np.ndarray:
    """The inverse of `to_ours` for a tensor of one part."""
    x = layer.reshape(stored_shape(tensor._replace(transposed=False, part=(0, 1)), spec))
    return x.T if tensor.transposed else x


def half_from_interleaved(x: np.ndarray) -> np.ndarray:
    """Reorders RoPE's channel pairs on the last axis: (2i, 2i+1) -> (i, i + Dh/2).

    The same for a projection whose outputs turn and for what is added or multiplied to them;
    queries and keys reordered alike have the same products.
    """
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def interleaved_from_half(x: np.ndarray) -> np.ndarray:
    """The inverse of `half_from_interleaved`."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def is_rotated(path: str) -> bool:
    """Whether the last axis of this weight, or of an adapter's B, is in a RoPE layout's order."""
    path = path.removesuffix(f"{trees.SEPARATOR}{lora.B}")
    return path.rpartition(trees.SEPARATOR)[2] in ROTATED


def expected(table: Table, specs: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(tensor name, shape) of a whole model with `specs`; a tensor of n parts comes n times."""
    for path, spec in trees.flatten(specs).items():
        for number in _layers(spec):
            yield table[path].name.format(number), stored_shape(table[path], spec)


def check(found: Mapping[str, Stored], table: Table, specs: dict, where: str) -> None:
    """Raises ConfigError naming the first tensor that is missing, extra or of another shape."""
    problems, wanted = [], set()
    for name, shape in expected(table, specs):
        wanted.add(name)
        if name not in found:  # the first will do: a config may speak of a billion layers
            raise ConfigError(
                f"{where}: tensor {name} is missing, expected with shape {list(shape)}"
            )
        if found[name].shape != shape:
            have = list(found[name].shape)
            problems.append(f"tensor {name} has shape {have}, expected {list(shape)}")
    problems += [
        f"tensor {name} {list(found[name].shape)} is no weight of this model"
        for name in found
        if name not in wanted
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{where}: {problems[0]}{more}")


def assemble(
    found: Mapping[str, Stored], table: Table, specs: dict, reorder: Reorder | None = None
) -> Params:
    """Our parameters, float32 numpy arrays, one tensor read at a time.

    Args:
      found: as `check` accepts it.
      reorder: for the last axis of what RoPE turns, from the file's layout to ours.
    """
    params = {}
    for path, spec in trees.flatten(specs).items():
        params[path] = np.empty(spec.shape, np.float32)
        for number in _layers(spec):
            layer = to_ours(found[table[path].name.format(number)].read(), table[path], spec)
            if reorder and is_rotated(path):
                layer = reorder(layer)
            params[path][number if spec.stacked else ...] = layer
    return trees.unflatten(params)


def disassemble(
    params: Params, table: Table, specs: dict, reorder: Reorder | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of every tensor, one at a time: the inverse of `assemble`.

    Args:
      reorder: for the last axis of what RoPE turns, from our layout to the file's.
    """
    flat, flat_specs = trees.flatten(params), trees.flatten(specs)
    by_name: dict[str, list[str]] = {}
    for path in flat_specs:
        by_name.setdefault(table[path].name, []).append(path)
    for name, paths in by_name.items():
        paths = sorted(paths, key=lambda path: table[path].part)
        for number in _layers(flat_specs[paths[0]]):
            parts = []
            for path in paths:
                spec, array = flat_specs[path], flat[path]
                layer = np.asarray(array[number] if spec.stacked else array, np.float32)
                if reorder and is_rotated(path):
                    layer = reorder(layer)
                parts.append(to_stored(layer, table[path], spec))
            axis = 0 if table[paths[0]].transposed else -1
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
            yield name.format(number), np.ascontiguousarray(whole)


def _layers(spec: ParamSpec) -> Any:
    return range(spec.shape[0]) if spec.stacked else (0,)
