"""What a run needs of memory and disk, held against what is there."""

import math
import os
import pathlib
import shutil
from typing import Any

import jax

from jaxlm.core.config import FLAG, ConfigError
from jaxlm.core.params import count_params
from jaxlm.train.config import RunConfig

MIB, GIB = 2**20, 2**30


def device_bytes() -> int | None:
    """Memory of a device; of a CPU the machine's. None where it is not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or host_bytes()


def host_bytes() -> int | None:
    """The machine's memory, or None where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def check_memory(cfg: RunConfig, specs: dict[str, Any], num_devices: int = 1) -> None:
    """Raises ConfigError where the memory there is could not hold the least that a step needs.

    That is the weights with their gradients, and the batches of a call: a lower bound, by which
    nothing is refused that could run.

    Args:
      specs: of the weights that are trained. num_devices: among which they may be split.
    """
    if jax.default_backend() == "cpu":
        num_devices = 1  # all of them share the machine's
    number = count_params(specs)
    require_room(
        8 * number,
        (device_bytes() or 0) * num_devices,
        f"{FLAG}model: its {number:,} weights with their gradients",
        "lower num_layers, d_model or d_ff",
    )
    check_batches(cfg)


def check_batches(cfg: RunConfig) -> None:
    """Raises ConfigError where the machine's memory could not hold the batches of a call."""
    batch = (cfg.data.batch_size, cfg.model.context_length)
    require_room(
        12 * cfg.train.steps_per_call * math.prod(batch),
        host_bytes() or 0,
        f"{FLAG}data.batch_size={batch[0]}: the batches of a call, {cfg.train.steps_per_call} of "
        f"{batch[0]} x {batch[1]} tokens,",
        "lower it or train.steps_per_call",
    )


def require_room(needed: int, room: int, what: str, remedy: str) -> None:
    """Raises ConfigError where more bytes are needed than there are; 0 of them: it is not known."""
    if room and needed > room:
        raise ConfigError(
            f"{what} take {needed / GIB:,.0f} GiB, the memory here is {room / GIB:,.0f}; {remedy}"
        )


def state_bytes(state: Any) -> int:
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
