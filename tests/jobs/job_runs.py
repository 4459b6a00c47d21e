"""Tiny runs for the tests of the jobs: how to launch one, and what makes two of them equal."""

import contextlib
import json
import os
import pathlib
import random
import select
import socket
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.core import trees
from jaxlm.io import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch.py"
QUICK_COMPILES = "--xla_backend_optimization_level=0"

# Dropout, so that the key of a step matters; intervals that do not all divide each other.
CONFIG = """
from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config():
    return RunConfig(
        model=TransformerConfig(
            context_length=16, num_layers=1, d_model=16, num_heads=2, d_ff=32,
            activation="relu", dropout=0.1,
        ),
        data=DataConfig(path={text!r}, batch_size=4),
        optim=OptimConfig(peak_lr=0.01, schedule="linear", warmup_steps=4),
        train=TrainConfig(
            num_steps=48, steps_per_call=8, log_every=1, eval_every=8, save_every=16,
            sample_every=24, sample_tokens=8,
        ),
    )
"""
TIMEOUT_S = 600  # only so that a hang ends: a busy machine takes many times as long as a quiet one
CLOCKS = {
    "seconds", "peak_memory_bytes", "tokens_per_s", "flops_per_s", "mfu", "mfu_causal",
}  # fmt: skip


class Outcome(NamedTuple):
    """What a launch came to."""

    code: int | str
    out: str
    err: str


def write_text(path: pathlib.Path, num_words: int = 900) -> None:
    """A text of 17 characters with something in it to learn, the same each time."""
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "big", "dog"]
    path.write_text("".join(rng.choice(words) + rng.choice("  \n.") for _ in range(num_words)))


def free_ports(number: int) -> list[int]:
    """So many, below those that the system gives to whoever asks for any: they stay free."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < number:
            port = random.SystemRandom().randrange(10_000, 32_000)
            with contextlib.suppress(OSError):  # in use
                stack.enter_context(socket.socket()).bind(("", port))
                ports.append(port)
    return ports


class Launcher:
    """Launches runs: in one process that lives on (called), or each in a process of its own.

    All of them, and none of the tests' own process, keep their caches in `cache_home`.
    devices: how many the processor is made to be.
    """

    def __init__(self, cache_home: pathlib.Path, devices: int = 1):
        self.cwd = cache_home
        flags = [os.environ.get("XLA_FLAGS", ""), QUICK_COMPILES]
        if devices > 1:
            flags.append(f"--xla_force_host_platform_device_count={devices}")
        self.env = {
            **os.environ,
            "XDG_CACHE_HOME": str(cache_home),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(flags),
        }
        self.env.pop("JAX_COMPILATION_CACHE_DIR", None)
        self._worker: subprocess.Popen | None = None

    def __call__(self, *args: object, crash: tuple[str, int, bool] | None = None) -> Outcome:
        """`python launch.py ARGS` in the worker; `crash` breaks it off, see worker.py."""
        if self._worker is None:
            worker = pathlib.Path(__file__).with_name("worker.py")
            self._worker = self._popen(worker, stdin=subprocess.PIPE, stderr=None)
        request = {"args": [str(arg) for arg in args], "crash": crash}
        self._worker.stdin.write(json.dumps(request) + "\n")
        self._worker.stdin.flush()
        answered, _, _ = select.select([self._worker.stdout], [], [], TIMEOUT_S)
        if not answered:
            self._worker.kill()
            self._worker.wait()
            self._worker = None
            raise TimeoutError(f"still running after {TIMEOUT_S} s: {request['args']}")
        return Outcome(**json.loads(self._worker.stdout.readline()))

    def start(self, *args: object) -> subprocess.Popen:
        """The real command, running; standard output and error are pipes of text."""
        return self._popen(LAUNCH, *args, stderr=subprocess.PIPE)

    def command(self, *args: object) -> Outcome:
        """The real command, run to its end."""
        with self.start(*args) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        return Outcome(process.returncode, out, err)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.stdin.close()
            self._worker.wait()
            self._worker.stdout.close()

    def _popen(self, *args: object, **pipes) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=self.cwd,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            **pipes,
        )


def state_bytes(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every leaf of the newest checkpoint by its path, and its step."""
    path, manifest = checkpoints.newest_good(workdir)
    target = {
        name: jax.random.key(0)
        if "key_impl" in leaf
        else jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
        for name, leaf in manifest["leaves"].items()
    }
    state = trees.flatten(checkpoints.restore(path, trees.unflatten(target)))
    return {
        name: np.asarray(jax.random.key_data(x) if "key_impl" in manifest["leaves"][name] else x)
        .tobytes()
        for name, x in state.items()
    } | {"": str(manifest["step"]).encode()}  # fmt: skip


def fingerprint(workdir: pathlib.Path) -> dict[str, object]:
    """All of a finished run that is a function of its config and text."""
    summary = json.loads((workdir / "summary.json").read_text())
    files = ("metrics.jsonl", "samples.jsonl", "tokenizer.json", "schedule.json")
    return {
        **{name: (workdir / name).read_bytes() for name in files},
        "summary": {name: value for name, value in summary.items() if name not in CLOCKS},
        "state": state_bytes(workdir),
        "report": (workdir / "report.html").exists(),
    }


def without_length(run: dict[str, object]) -> dict[str, object]:
    """A fingerprint without what a `constant` schedule is told of the length and does not read."""
    hidden = ("hypers/total_steps", "hypers/decay_steps")
    return {**run, "state": {k: v for k, v in run["state"].items() if k not in hidden}}


def assert_same_run(got: pathlib.Path, want: dict[str, object]) -> None:
    """`got` ended as the run of the `fingerprint` did; the first difference is named."""
    have = fingerprint(got)
    for name, value in want.items():
        if name == "state":
            assert have[name].keys() == value.keys()
            different = [path for path in value if have[name][path] != value[path]]
            assert not different, f"state differs in {different}"
        else:
            assert have[name] == value, f"{name} differs"


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder` with its bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def records(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
