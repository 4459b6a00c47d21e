"""--job=inspect: what is in a run's checkpoint, by its manifest; no array is read."""

import json
import math
from typing import Any

import jax.numpy as jnp

from jaxlm.core.config import ConfigError
from jaxlm.io import checkpoints
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import check_choice, require_workdir
from jaxlm.reports.tables import print_table


def main(launch: Launch) -> int:
    which = launch.flags.checkpoint
    check_choice(launch.flags, "checkpoint", ("newest", "best"))
    check_choice(launch.flags, "output", ("text", "json"))
    folder = require_workdir(launch, "inspect")
    found = (checkpoints.newest_good if which == "newest" else checkpoints.best)(folder)
    if found is None:
        raise ConfigError(f"--workdir={folder}: holds no {which} checkpoint yet")
    path, manifest = found
    if launch.flags.output == "json":
        print(json.dumps({"path": str(path), **manifest}, indent=2))
        return 0
    show(str(path), manifest)
    return 0


def show(path: str, manifest: dict[str, Any]) -> None:
    """Prints the manifest of a checkpoint: every leaf, sums by part of the state, every file."""
    print(f"{path}: step {manifest['step']}")
    for name, value in {**manifest["metrics"], **manifest["extra"]}.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    parts: dict[str, list[int]] = {}
    rows = [["array", "shape", "dtype", "bytes"]]
    for name, leaf in manifest["leaves"].items():
        numbers = math.prod(leaf["shape"])
        num_bytes = numbers * _itemsize(leaf["dtype"])
        rows.append([name, str(leaf["shape"]), leaf["dtype"], f"{num_bytes:,}"])
        total = parts.setdefault(name.partition("/")[0], [0, 0, 0])
        for i, more in enumerate((1, numbers, num_bytes)):
            total[i] += more
    print()
    print_table(rows, left=True)
    print()
    totals = [[name, *(f"{x:,}" for x in counts)] for name, counts in parts.items()]
    print_table([["part", "arrays", "numbers", "bytes"], *totals])
    print()
    files = manifest["files"].items()
    files = [[name, f"{file['size']:,}", file["sha256"]] for name, file in files]
    print_table([["file, as it was written", "bytes", "sha256"], *files], left=True)


def _itemsize(dtype: str) -> int:
    """Bytes of a number; of a random key, "key<fry>", the two words that it is."""
    return 8 if dtype.startswith("key<") else jnp.dtype(dtype).itemsize
