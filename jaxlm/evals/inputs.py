"""What measures accept, as numpy arrays; anything else raises a ValueError that says where."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def numbers(values: ArrayLike, name: str) -> np.ndarray:
    """f64[n], n >= 1, finite."""
    vector = _vector(values, name).astype(np.float64)
    bad = ~np.isfinite(vector)
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(f"{name}[{at}]={vector[at]}: expected a finite number")
    return vector


def class_ids(values: ArrayLike, name: str, num_classes: int | None = None) -> np.ndarray:
    """i64[n], n >= 1, from 0 to num_classes - 1."""
    vector = _vector(values, name)
    ids = vector.astype(np.int64)
    bad = (ids != vector) | (ids < 0)
    if num_classes is not None:
        bad |= ids >= num_classes
    if bad.any():
        at, most = int(np.argmax(bad)), "" if num_classes is None else f" to {num_classes - 1}"
        raise ValueError(f"{name}[{at}]={vector[at]}: expected a class from 0{most}")
    return ids


def binary(values: ArrayLike, name: str) -> np.ndarray:
    """bool[n], n >= 1, of zeros and ones or booleans."""
    return class_ids(values, name, 2) == 1


def distributions(values: ArrayLike, name: str) -> np.ndarray:
    """f64[..., C] of probabilities that sum to 1 over the last axis, to 1e-4."""
    array = np.asarray(values, np.float64)
    if array.ndim < 1 or array.size == 0:
        raise ValueError(f"{name}: expected probabilities [..., C], got shape {array.shape}")
    if not ((array >= 0).all() and np.allclose(array.sum(-1), 1, rtol=0, atol=1e-4)):
        raise ValueError(f"{name}: expected probabilities of 0 or more that sum to 1 in each row")
    return array


def check_lengths(**columns: Any) -> None:
    """All are equally long."""
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"{listed}: expected equal lengths")


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    vector = np.asarray(values)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected a list of one or more, got shape {vector.shape}")
    return vector
