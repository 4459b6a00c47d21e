"""What a training step takes of each device's memory, as --job=compile and a run that cannot fit
print it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxlm.analysis.hlo import compiled_bytes
from jaxlm.core import trees
from jaxlm.jobs import plan
from jaxlm.models.backends import Choice
from jaxlm.reports.tables import print_table
from jaxlm.train.config import RunConfig
from jaxlm.train.estimates import Held, device_bytes
from jaxlm.train.layouts import weight_of
from jaxlm.train.state import TrainState

SURELY_LESS = 0.9  # than what is there, and than what was too much: our count may be off


def show_state(state: TrainState) -> None:
    """Prints the weights, how each is split, and what one device holds of it.

    state: shapes and shardings.
    """
    weights = trees.flatten(state.params)
    held = dict.fromkeys(weights, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        name = weight_of(path, leaf.shape, weights)
        if name is not None:
            held[name] += device_bytes(leaf)
    rows = [["weight", "shape", "split over", "MiB a device", "its optimizer's"]]
    for path, leaf in weights.items():
        split = ["+".join(_mesh_axes(leaf.sharding, part)) or "-" for part in leaf.sharding.spec]
        here = (device_bytes(leaf), held[path])
        rows.append(
            [path, str(list(leaf.shape)), " ".join(split), *(f"{mib(n):,.2f}" for n in here)]
        )
    total = (device_bytes(weights), sum(held.values()))
    rows.append(["all", "", "", *(f"{mib(n):,.2f}" for n in total)])
    frozen = device_bytes(state.frozen)
    if frozen:
        rows.append(["frozen weights", "", "", f"{mib(frozen):,.2f}", ""])
    if all(leaf.sharding.is_fully_replicated for leaf in weights.values()):
        rows = [[*row[:2], *row[3:]] for row in rows]
    print_table(rows, left=True)


def show_held(held: Held, limit: int | None) -> None:
    """Prints our own count. limit: bytes of a device; None where that is not known."""
    _show_total("by our count", held.total, limit)
    _show_parts(
        {
            "the state and a batch": held.state,
            "activations kept for the backward pass": held.kept,
            "gradients": held.gradients,
            "other temporaries": held.others,
        }
    )


def show_compiled(sizes: Any, limit: int | None) -> bool:
    """Prints what a compiled program takes, by its own account. Is there as much?

    limit: bytes of a device; None where that is not known.
    """
    needed = compiled_bytes(sizes)
    fits = limit is None or needed <= limit
    _show_total("fits" if fits else "does not fit", needed, limit)
    _show_parts(
        {
            "the state and a batch": sizes.argument_size_in_bytes,
            "results beside it": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
            "activations, gradients and other temporaries": sizes.temp_size_in_bytes,
            "the program": sizes.generated_code_size_in_bytes,
        }
    )
    return fits


def show_nearest(
    cfg: RunConfig,
    devices: Sequence[Any],
    limit: int | None,
    attention: Choice | None,
    less_than: int,
) -> list[str]:
    """Prints what to change so that a step fits, by our count, and returns the flags.

    limit: bytes of a device; None where that is not known. less_than: what the config itself was
    counted to hold, and was too much.
    """
    most = SURELY_LESS * (less_than if limit is None else min(limit, less_than))
    best = plan.nearest(cfg, plan.candidates(cfg, devices, attention), most)
    if best is None:
        print(f"nothing near it fits: {plan.NOTHING_FITS}")
        return []
    flags = plan.changes(cfg, best.cfg)
    print(f"would fit with {' '.join(flags)}: {mib(best.held.total):,.0f} MiB by our count")
    return flags


def mib(num_bytes: float) -> float:
    return num_bytes / 2**20


def _show_total(what: str, needed: int, limit: int | None) -> None:
    room = "" if limit is None else f" of {mib(limit):,.0f}"
    print(f"{what}: {mib(needed):,.1f}{room} MiB a device")


def _show_parts(parts: dict[str, int]) -> None:
    print("  " + ", ".join(f"{name} {mib(size):,.1f}" for name, size in parts.items()))


def _mesh_axes(where: NamedSharding, part: Any) -> list[str]:
    """The mesh axes over which a dimension is really split: those of more than one device."""
    names = [] if part is None else [part] if isinstance(part, str) else part
    return [name for name in names if where.mesh.shape[name] > 1]
