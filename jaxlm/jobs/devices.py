"""How a job divides the machine's processor, and what memory the devices have."""

import os
from collections.abc import Iterable
from typing import Any

import jax

from jaxlm.analysis import roofline
from jaxlm.core.config import ConfigError
from jaxlm.io import host_memory
from jaxlm.jobs.long_texts import num_cores


def one_cpu_device_per_core() -> None:
    """Makes each core a device, so that the lanes of a population run side by side.

    To be called before the first computation; changes nothing after it, nor where XLA_FLAGS
    already says how many devices there are. A tiny model gains most: its operations are too small
    for several threads each.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:  # the backend is running already
        return


def force_cpu_devices(number: int) -> None:
    """Makes the machine's processor so many devices, and the only ones.

    Raises:
      ConfigError: XLA_FLAGS says another number, or a computation has already been run.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # the backend is running already
        pass
    if jax.device_count() != number:
        raise ConfigError(
            f"{number} devices of the CPU are needed, there are {jax.device_count()}: leave "
            "xla_force_host_platform_device_count out of XLA_FLAGS"
        )


def free_bytes(devices: Iterable[Any]) -> int | None:
    """Bytes that a program may take on each of these devices; None where it is not known.

    On a CPU what the host has free, in equal parts; of accelerators what their runtime says is
    free, and of chips that are not here what such have.
    """
    devices = list(devices)
    mine = [d for d in devices if d.process_index == jax.process_index()] or devices
    if mine[0].platform == "cpu":
        free = host_memory.free_bytes()
        return None if free is None else free // len(mine)
    try:
        stats = mine[0].memory_stats() or {}
    except jax.errors.JaxRuntimeError:
        stats = {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    chip = roofline.chip_of(mine[0].device_kind)
    return chip and chip.memory_bytes
