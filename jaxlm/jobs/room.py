"""What a run needs of memory and disk, held against what is there."""

import math
import pathlib
import shutil
from typing import Any

import jax

from jaxlm.core.config import FLAG, ConfigError
from jaxlm.core.params import count_params
from jaxlm.io import host_memory
from jaxlm.jobs.devices import free_bytes
from jaxlm.train.config import RunConfig

MIB, GIB = 2**20, 2**30


def check_memory(cfg: RunConfig, specs: dict[str, Any]) -> None:
    """Raises ConfigError where what is free on a device could not hold the least of a step.

    That is the weights with their gradients, and the batches of a call: a lower bound, by which
    nothing is refused that could run.

    Args:
      specs: of the weights that are trained.
    """
    number = count_params(specs)
    require_room(
        8 * number,
        free_bytes(jax.local_devices()[:1]),
        f"{FLAG}model: its {number:,} weights with their gradients",
        "lower num_layers, d_model or d_ff",
    )
    check_batches(cfg)


def check_batches(cfg: RunConfig) -> None:
    """Raises ConfigError where the machine's memory could not hold the batches of a call."""
    batch = (cfg.data.batch_size, cfg.model.context_length)
    require_room(
        12 * cfg.train.steps_per_call * math.prod(batch),
        host_memory.free_bytes(),
        f"{FLAG}data.batch_size={batch[0]}: the batches of a call, {cfg.train.steps_per_call} of "
        f"{batch[0]} x {batch[1]} tokens,",
        "lower it or train.steps_per_call",
    )


def require_room(needed: int, free: int | None, what: str, remedy: str) -> None:
    """Raises ConfigError where more bytes are needed than are free, if that is known."""
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} take {needed / GIB:,.1f} GiB, {free / GIB:,.1f} are free here; {remedy}"
        )


def checkpoint_bytes(state: Any) -> int:
    """What a checkpoint of a state takes on the disk, about."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def low_disk(folder: pathlib.Path, needed: int, what: str) -> str | None:
    """A line for the reader where the disk of `folder` has fewer bytes free than `what` needs."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"disk      low: {free / MIB:,.1f} MiB free in {folder}, {what}: {needed / MIB:,.1f} MiB; "
        "make room, or keep fewer (train.keep_last, train.keep_best)"
    )
