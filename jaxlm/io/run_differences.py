"""Whether two runs are the same, bit for bit, and the first place where they are not."""

import itertools
import os
import pathlib
from typing import Any

import jax
import numpy as np

from jaxlm.core import json_forms, trees
from jaxlm.io import checkpoints


def read_leaves(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint by its path; a typed key as its words."""
    saved = checkpoints.read_manifest(path)["leaves"]
    target = {
        name: jax.random.key(0, impl=leaf["key_impl"])
        if "key_impl" in leaf
        else np.empty(leaf["shape"], leaf["dtype"])
        for name, leaf in saved.items()
    }
    state = trees.flatten(checkpoints.restore(path, trees.unflatten(target)))
    return {
        name: np.asarray(jax.random.key_data(leaf) if "key_impl" in saved[name] else leaf)
        for name, leaf in state.items()
    }


def first_difference(a: str | os.PathLike, b: str | os.PathLike) -> str | None:
    """One line with the first difference of two runs' workdirs, or None where there is none.

    Compared are the lines of metrics.jsonl and samples.jsonl, then every byte of every leaf of the
    newest good checkpoint.
    """
    a, b = pathlib.Path(a), pathlib.Path(b)
    for name in ("metrics.jsonl", "samples.jsonl"):
        line = _first_line(*((run / name).read_bytes().splitlines() for run in (a, b)))
        if line is not None:
            return f"{name}, {line}"
    one, other = (checkpoints.newest_good(run) for run in (a, b))
    steps = [None if each is None else each[1]["step"] for each in (one, other)]
    if one is None or other is None or steps[0] != steps[1]:
        return f"newest good checkpoint: of step {steps[0]} against {steps[1]}"
    return _first_leaf(read_leaves(one[0]), read_leaves(other[0]))


def _first_line(a: list[bytes], b: list[bytes]) -> str | None:
    for number, (one, other) in enumerate(itertools.zip_longest(a, b), 1):
        if one == other:
            continue
        if one is None or other is None:
            return f"line {number}: {len(a)} lines against {len(b)}"
        one, other = (_record(line) for line in (one, other))
        fields = [f for f in one | other if repr(one.get(f)) != repr(other.get(f))]
        if not fields:
            return f"line {number}: written differently"
        field = fields[0]
        return f"line {number}: {field} {one.get(field)!r} against {other.get(field)!r}"
    return None


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json_forms.parse(line)
    except ValueError:
        return {"text": line.decode(errors="replace")}
    return record if isinstance(record, dict) else {"value": record}


def _first_leaf(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str | None:
    for path in sorted(a.keys() ^ b.keys()):
        return f"{path}: only in the {'first' if path in a else 'second'} run"
    for path, one in a.items():
        other = b[path]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"{path}: {one.dtype}{one.shape} against {other.dtype}{other.shape}"
        if one.tobytes() == other.tobytes():
            continue
        bits = [np.ascontiguousarray(x).reshape(-1, 1).view(np.uint8) for x in (one, other)]
        differ = np.any(bits[0] != bits[1], axis=1).reshape(one.shape)
        place = tuple(int(i) for i in np.argwhere(differ)[0])
        index = ", ".join(map(str, place))
        return (
            f"{path}[{index}]: {one[place]!s} against {other[place]!s}; {int(differ.sum()):,} of "
            f"its {one.size:,} numbers differ, by up to {_relative(one, other):.0e} of the largest"
        )
    return None


def _relative(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    largest = max(np.max(np.abs(one)), np.max(np.abs(other)))
    return float(np.max(np.abs(one - other)) / largest) if largest else 0.0
