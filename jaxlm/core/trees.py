"""Names for the leaves of nested dicts: "blocks/wq" is the checkpoint name and the plot label."""

from collections.abc import Callable
from typing import Any

SEPARATOR = "/"


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {"a/b": leaf}, sorted by path. Anything that is not a dict is a leaf."""
    flat = {}
    for name in sorted(tree):
        path = f"{prefix}{SEPARATOR}{name}" if prefix else name
        value = tree[name]
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def unflatten(flat: dict[str, Any]) -> dict:
    """The inverse of `flatten`: {"a/b": leaf} -> {"a": {"b": leaf}}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(fn: Callable[..., Any], tree: dict, *rest: dict) -> dict:
    """Applies `fn(path, leaf, *leaves_of_rest)` to every leaf of nested dicts of one structure."""
    flats = [flatten(other) for other in rest]
    return unflatten(
        {
            path: fn(path, leaf, *(flat[path] for flat in flats))
            for path, leaf in flatten(tree).items()
        }
    )
