"""Points of a sweep: what each run overrides, built from axes.

    product(axis("optim.peak_lr", 1e-3, 3e-3), axis("seed", *range(5)))             # 10 points
    zipped(axis("model.d_model", 64, 128), axis("model.num_heads", 2, 4))            # 2 points
    chain(product(...), product(...))                                                # one after all

A point is {"optim.peak_lr": 1e-3, "seed": 0}: values of fields, by path.
"""

import itertools
from typing import Any

from jaxlm.core.config import ConfigError

Point = dict[str, Any]


def axis(path: str, *values: Any) -> list[Point]:
    """One point for each value of the field at `path`.

    Raises:
      ConfigError: no values, or one given twice.
    """
    if not values:
        raise ConfigError(f'axis("{path}"): empty; give it at least one value')
    repeated = [v for i, v in enumerate(values) if v in values[:i]]
    if repeated:
        raise ConfigError(f'axis("{path}"): {repeated[0]} is given twice')
    return [{path: value} for value in values]


def product(*parts: list[Point]) -> list[Point]:
    """Every combination of one point of each part, the last part varying fastest.

    Raises:
      ConfigError: two parts set one field, or a part is empty.
    """
    return [_merged(points, "product") for points in itertools.product(*_checked(parts, "product"))]


def zipped(*parts: list[Point]) -> list[Point]:
    """The first points of all parts together, the second ones, and so on.

    Raises:
      ConfigError: parts of unequal length, two that set one field, or an empty one.
    """
    parts = _checked(parts, "zipped")
    if len({len(part) for part in parts}) > 1:
        lengths = ", ".join(f"{'+'.join(part[0])}: {len(part)}" for part in parts)
        raise ConfigError(f"zipped: axes of unequal length ({lengths})")
    return [_merged(points, "zipped") for points in zip(*parts, strict=True)]


def chain(*parts: list[Point]) -> list[Point]:
    """The points of all parts, one part after the other.

    Raises:
      ConfigError: a part is empty, or a point comes twice.
    """
    points = list(itertools.chain(*_checked(parts, "chain")))
    repeated = [p for i, p in enumerate(points) if p in points[:i]]
    if repeated:
        raise ConfigError(f"chain: {describe(repeated[0])} comes twice")
    return points


def describe(point: Point) -> str:
    """ "optim.peak_lr=0.001 seed=0"."""
    return " ".join(f"{path}={value}" for path, value in point.items())


def varied_fields(points: list[Point]) -> list[str]:
    """Paths whose values differ between points, in order of first appearance.

    A field that some points do not set counts as varied.
    """
    paths = dict.fromkeys(path for point in points for path in point)
    missing = object()
    return [
        path
        for path in paths
        if any(point.get(path, missing) != points[0].get(path, missing) for point in points)
    ]


def axes_of(points: list[Point]) -> list[tuple[str, ...]]:
    """The varied fields, those that always change together in one tuple: ("d_model", "heads")."""
    groups: dict[tuple, list[str]] = {}
    for path in varied_fields(points):
        values = [repr(point.get(path)) for point in points]
        pattern = tuple(values.index(value) for value in values)
        groups.setdefault(pattern, []).append(path)
    return [tuple(paths) for paths in groups.values()]


def _checked(parts: tuple, name: str) -> tuple[list[Point], ...]:
    if not parts or not all(parts):
        raise ConfigError(f"{name}: an empty axis; each part needs at least one point")
    return parts


def _merged(points: tuple[Point, ...], name: str) -> Point:
    merged: Point = {}
    for point in points:
        for path, value in point.items():
            if path in merged:
                raise ConfigError(f"{name}: two axes set {path}; keep one of them")
            merged[path] = value
    return merged
