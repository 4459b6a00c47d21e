"""Weights that a run uses and never changes, kept once: `<workdir>/frozen/<hash>/`.

A checkpoint of the run names the hash, so that it need not hold the weights again.
"""

import hashlib
import os
import pathlib
import re

import numpy as np

from jaxlm.core import trees
from jaxlm.core.arrays import Params
from jaxlm.io import checkpoints
from jaxlm.io.checkpoints import CheckpointError

FOLDER = "frozen"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def fingerprint(params: Params) -> str:
    """64 hex digits, the SHA-256 of every path, shape, dtype and value."""
    digest = hashlib.sha256()
    for path, leaf in trees.flatten(params).items():
        array = np.ascontiguousarray(checkpoints.on_host(leaf))
        digest.update(f"{path} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save(workdir: str | os.PathLike, params: Params) -> str:
    """Writes the weights unless they are there and whole; returns their fingerprint.

    Raises:
      CheckpointError: they could not be written.
    """
    digest = fingerprint(params)
    folder = pathlib.Path(workdir) / FOLDER / digest
    try:
        checkpoints.verify(checkpoints.step_dir(folder, 0))
    except CheckpointError:  # not there, or damaged
        with checkpoints.Checkpointer(folder) as writer:
            writer.save(0, params)
    return digest


def restore(workdir: str | os.PathLike, digest: str, target: Params) -> Params:
    """The weights of this fingerprint, bit for bit, in the structure of `target`.

    Args:
      target: nested dict of arrays or `jax.ShapeDtypeStruct`s.
    Raises:
      CheckpointError: they are missing, damaged, of other shapes, or other weights.
    """
    if not _DIGEST.fullmatch(str(digest)):
        raise CheckpointError(f"frozen weights of this run: {digest!r:.80} is no fingerprint")
    path = checkpoints.step_dir(pathlib.Path(workdir) / FOLDER / digest, 0)
    try:
        checkpoints.verify(path)
        params = checkpoints.restore(path, target)
    except CheckpointError as error:
        raise CheckpointError(f"frozen weights of this run: {error}; put them back") from None
    found = fingerprint(params)
    if found != digest:
        raise CheckpointError(
            f"frozen weights of this run: {path}: holds other weights ({found[:12]}); "
            f"put back those of {digest[:12]}"
        )
    return params
