"""Memory and disk: what cannot fit is refused, what may not is said, and a workdir is bounded."""

import collections
import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from job_runs import LAUNCH, ROOT

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.core.params import count_params
from jaxlm.io import host_memory
from jaxlm.jobs import room
from jaxlm.jobs.devices import free_bytes
from jaxlm.models.transformer import param_specs
from jaxlm.train.config import RunConfig

Usage = collections.namedtuple("Usage", "total used free")


def test_what_no_memory_holds_is_refused_and_the_rest_is_not(monkeypatch):
    cfg = apply_overrides(RunConfig(), {"model.vocab_size": "64"})
    specs = param_specs(cfg.model)
    needed = 8 * count_params(specs)
    monkeypatch.setattr(room, "free_bytes", lambda devices: needed)
    room.check_memory(cfg, specs)
    monkeypatch.setattr(room, "free_bytes", lambda devices: needed - 1)
    with pytest.raises(ConfigError, match="--config.model: its .* weights .* num_layers"):
        room.check_memory(cfg, specs)
    monkeypatch.setattr(room, "free_bytes", lambda devices: None)  # not known
    room.check_memory(cfg, specs)
    counts = ("num_steps", "steps_per_call", "eval_every", "save_every")
    calls = dataclasses.replace(cfg.train, **dict.fromkeys(counts, 2**30))
    with pytest.raises(ConfigError, match="data.batch_size=32: .* or train.steps_per_call"):
        room.check_memory(dataclasses.replace(cfg, train=calls), specs)


def test_the_devices_of_a_cpu_share_what_the_host_has_free(monkeypatch):
    """As the kernel and the control groups leave it, see tests/io/test_host_memory.py."""
    monkeypatch.setattr(host_memory, "free_bytes", lambda: 1001)
    (device,) = jax.local_devices()[:1]
    assert free_bytes([device]) == 1001 and free_bytes(iter([device] * 4)) == 250
    with pytest.raises(ConfigError, match="1.0 GiB, 0.0 are free here; use less"):
        room.require_room(2**30, free_bytes([device]), "it", "use less")
    monkeypatch.setattr(host_memory, "free_bytes", lambda: None)
    assert free_bytes([device]) is None
    room.require_room(2**60, None, "it", "use less")


def test_a_low_disk_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(9, 9, 5 * 2**20))
    assert room.low_disk(tmp_path, 5 * 2**20, "2 more checkpoints") is None
    line = room.low_disk(tmp_path, 7 * 2**20, "2 more checkpoints")
    for word in ("5.0 MiB free", str(tmp_path), "2 more checkpoints: 7.0 MiB", "keep_last"):
        assert word in line
    assert "\n" not in line


def test_the_size_of_a_state():
    state = {"w": jnp.zeros((3, 4)), "half": jnp.zeros(5, jnp.bfloat16)}
    assert room.checkpoint_bytes(state) == 3 * 4 * 4 + 5 * 2


# Of the disk 20 KiB are free, whatever is written.
SMALL_DISK = """
import collections, runpy, shutil, sys
shutil.disk_usage = lambda folder: collections.namedtuple("U", "total used free")(0, 0, 20 << 10)
sys.argv[0] = {launch!r}
runpy.run_path({launch!r}, run_name="__main__")
"""


def test_a_run_says_once_at_its_start_and_once_at_a_save_that_the_disk_is_low(
    launch, config, tmp_path
):
    code = SMALL_DISK.format(launch=str(LAUNCH))
    command = [sys.executable, "-c", code, config, f"--workdir={tmp_path}/run"]
    env = launch.env | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("disk")]
    assert [line.split(", ")[1].partition(":")[0] for line in lines] == [
        "4 more checkpoints",
        "this checkpoint and the next",
    ], done.stdout


def test_a_long_run_keeps_no_more_than_a_short_one(launch, config, finished, tmp_path):
    """Twelve checkpoints are written; those kept, and what lies beside them, are bounded."""
    every = ["save_every=8", "eval_every=8", "num_steps=96", "sample_every=none"]
    flags = [f"--config.train.{field}" for field in every]
    outcome = launch(config, *flags, f"--workdir={tmp_path}/run")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run"
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(kept) <= 3 and kept[-1] == "step_00000096"

    def size(path):
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())

    one = size(finished / "checkpoints") / len(list((finished / "checkpoints").iterdir()))
    assert size(folder / "checkpoints") < 3.3 * one
    logs = {"metrics.jsonl", "timings.jsonl", "samples.jsonl"}
    beside = {p.name for p in folder.iterdir() if p.is_file()} - logs
    assert beside == {p.name for p in finished.iterdir() if p.is_file()} - logs
