"""Several processes as one run: how they find each other, which one writes, what they agree on.

Every process runs the same command. All of them compute, and write their part of the checkpoints;
the first alone prints and writes everything else.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm.core.config import ConfigError
from jaxlm.io.checkpoints import CheckpointError

# Seconds: until a process that is silent counts as dead, and for the others to end in order.
HEARTBEAT, SHUTDOWN, CONNECT = 60, 30, 300


def join(flags: Any) -> None:
    """Meets the other processes, if the flags say that there are any; before the first computation.

    Raises:
      ConfigError: flags that do not belong together, or the others are not met in time.
    """
    given = {name: getattr(flags, name) for name in ("num_processes", "process_id")}
    where = flags.coordinator
    if where is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"--{name}={value}: give --coordinator=HOST:PORT as well")
        return
    if where == "auto":
        address = {}
        if any(value is not None for value in given.values()):
            raise ConfigError(
                "--coordinator=auto: SLURM or the TPU gives number and place; leave "
                "--num_processes and --process_id out"
            )
    else:
        missing = [f"--{name}" for name, value in given.items() if value is None]
        if missing:
            raise ConfigError(f"--coordinator={where}: {' and '.join(missing)} must be given too")
        if not given["process_id"] < given["num_processes"]:
            raise ConfigError(
                f"--process_id={given['process_id']}: must be below "
                f"--num_processes={given['num_processes']}"
            )
        if not where.rpartition(":")[2].isdecimal() or ":" not in where:
            raise ConfigError(f"--coordinator={where}: expected HOST:PORT of process 0, or auto")
        address = {"coordinator_address": where, **given}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **address,
            initialization_timeout=CONNECT,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--coordinator={where}: the processes did not meet: {reason}") from None
    if not is_writer():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def is_writer() -> bool:
    """Whether this process prints and writes what only one may."""
    return jax.process_index() == 0


@contextlib.contextmanager
def own_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where this process writes its logs: the writer in `folder`, others where nobody looks."""
    if is_writer():
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield pathlib.Path(scratch)


def wait_for_all(what: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def largest(number: int) -> int:
    """Of the numbers that all processes give; they must call it together."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def leave(code: int) -> int:
    """`code`, for a process that fails alone; of several it ends here, without the others."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """Where one of several processes fails, the others learn of it at once and say so in a line.

    An orderly end would wait for processes that wait for this one: it ends without.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        text = " ".join(str(error).split())
        me = f"process {jax.process_index()} of {jax.process_count()}"
        mended = isinstance(error, ConfigError) and not isinstance(error, CheckpointError)
        if not mended and any(word in text for word in _LOST):
            line, code = f"{me}: another one ended or cannot be reached ({text[:200]}); {_AGAIN}", 1
        elif isinstance(error, ConfigError):
            line, code = text, 2
        else:
            line, code = traceback.format_exc(), 1
        print(f"launch.py: {line}", file=sys.stderr, flush=True)
        leave(code)


_AGAIN = "start all of them again to go on from the last checkpoint"
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat", "barrier")
