"""--job=verify_resume: a run killed again and again ends, bit for bit, as the unbroken one.

Each run is a process of its own, ended by SIGKILL, which no program can catch, and started again
until it has been killed as often as asked and comes to its end.
"""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax

import jaxlm
from jaxlm.core.config import ConfigError, diff
from jaxlm.io import checkpoints, workdir
from jaxlm.io.run_differences import first_difference
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.recorder import METRICS_FILE, PROVENANCE_FILE
from jaxlm.train.config import RunConfig

STEPS_PER_CALL = (1, 8)
SAVE_EVERY = 16
CHILD = """
import sys, types
from jaxlm import jobs
alone = types.SimpleNamespace(coordinator=None, num_processes=None, process_id=None)
sys.exit(jobs.run("train", jobs.Launch(sys.argv[1], {}, sys.argv[2], sys.argv[1], alone)))
"""
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
PROMISES = {
    "cpu": "equal bit for bit",
    "gpu": f"equal bit for bit with XLA_FLAGS={DETERMINISTIC}, as set here; without it sums may be "
    "taken in another order, and a resumed run is equal but for rounding",
    "tpu": "equal bit for bit on the same number and kind of chips",
}


def main(launch: Launch) -> int:
    flags = launch.flags
    if flags.steps % 8:
        raise ConfigError(f"--steps={flags.steps}: must be a multiple of 8, the steps of a call")
    jax.config.update("jax_platforms", "cpu")  # here: the device is the children's
    given, name = launch_config(launch)
    with tempfile.TemporaryDirectory(prefix="verify_resume-") as temporary:
        root = pathlib.Path(launch.workdir or temporary)
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f"--workdir={root}: must be empty or not there")
        equal = True
        for steps_per_call in STEPS_PER_CALL:
            cfg = shortened(given, flags.steps, steps_per_call)
            print(f"config    {name}, {steps_per_call} steps a call: ", end="")
            print("; ".join(diff(given, cfg)))
            difference = compare(cfg, root / f"calls-of-{steps_per_call}", flags.kills, flags.seed)
            equal &= difference is None
            print(f"{'equal' if difference is None else 'different':10}", end="")
            print(difference or "every leaf and every line of the metrics and samples")
    return 0 if equal else 1


def shortened(cfg: RunConfig, num_steps: int, steps_per_call: int) -> RunConfig:
    """The config with `num_steps` steps, a checkpoint every 16, and all that is logged."""
    train = dataclasses.replace(
        cfg.train,
        num_steps=num_steps,
        steps_per_call=steps_per_call,
        log_every=1,
        save_every=SAVE_EVERY,
        eval_every=SAVE_EVERY,
        eval_batches=min(2, cfg.train.eval_batches or 2),
        sample_every=3 * SAVE_EVERY,
        sample_tokens=min(8, cfg.train.sample_tokens),
        trackers=(),
        profile_steps=None,
    )
    optim = dataclasses.replace(
        cfg.optim,
        warmup_steps=min(cfg.optim.warmup_steps, num_steps // 4),
        decay_steps=cfg.optim.decay_steps and min(cfg.optim.decay_steps, num_steps // 4),
    )
    return dataclasses.replace(cfg, train=train, optim=optim)


def compare(cfg: RunConfig, root: pathlib.Path, num_kills: int, seed: int) -> str | None:
    """The first difference of a run that is killed from one that is not, or None."""
    unbroken, killed = root / "unbroken", root / "killed"
    try:
        root.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--workdir={root.parent}: {error.strerror}") from None
    workdir.save_config(root, cfg)
    began = time.monotonic()
    Child(root, unbroken).finish()
    life_s = time.monotonic() - began
    platform = workdir.load_json(unbroken / PROVENANCE_FILE)["backend"]
    print(f"promise   {platform}: {PROMISES.get(platform, 'none is known')}")

    rng, kills, unkilled = random.Random(seed), 0, 0
    while kills < num_kills:
        when = list(MOMENTS)[kills % len(MOMENTS)]
        child = Child(root, killed)
        if child.kill_at(MOMENTS[when](child, rng, life_s), rng.uniform(0, 0.02)):
            kills, unkilled = kills + 1, 0
            print(
                f"killed    {kills:2}: {when}, at step {last_logged(killed)}, newest checkpoint "
                f"{newest_step(killed)}"
            )
            continue
        child.finish()  # it came to its end before: once more, from the start
        if (difference := first_difference(unbroken, killed)) is not None:
            return difference
        shutil.rmtree(killed)
        unkilled += 1
        if unkilled == 5:
            raise ConfigError("--steps: the run ends before it can be killed; give more steps")
    Child(root, killed).finish()
    return first_difference(unbroken, killed)


class Child:
    """A process that trains, or goes on with, the run of `<root>/config.json` in `folder`."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path):
        self.folder, self.before = folder, newest_step(folder)
        self.output = root / f"{folder.name}.out"
        places = [str(pathlib.Path(jaxlm.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, places)),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}",
        }
        command = [sys.executable, "-u", "-c", CHILD, root / workdir.CONFIG_FILE, folder]
        with open(self.output, "wb") as out:
            self._process = subprocess.Popen(command, env=env, stdout=out, stderr=out)

    def says(self, text: bytes) -> bool:
        return text in self.output.read_bytes()

    def finish(self) -> None:
        """Returns when it has come to its end; raises ConfigError with its words if that is bad."""
        try:
            code = self._process.wait()
        finally:
            self._process.kill()
        if code:
            last = (self.output.read_text().splitlines() or [f"exit code {code}"])[-1]
            raise ConfigError(f"{self.folder.name} run: {last.split('ConfigError: ')[-1]}")

    def kill_at(self, moment: Callable[[], bool], delay_s: float) -> bool:
        """SIGKILL `delay_s` after the moment has come; False where it ended before."""
        try:
            while not moment():
                if self._process.poll() is not None:
                    return False
                time.sleep(0.002)
            time.sleep(delay_s)
        finally:
            self._process.kill()
        return self._process.wait() == -signal.SIGKILL


def _somewhere(child: Child, rng: random.Random, life_s: float) -> Callable[[], bool]:
    end = time.monotonic() + rng.uniform(0, life_s)
    return lambda: time.monotonic() > end


def _before_the_first_step(child: Child, rng: random.Random, life_s: float) -> Callable[[], bool]:
    line = rng.choice((b"\ndata ", b"\nattention ", b"\ncompiled "))  # all after the text was read
    return lambda: child.says(line)


def _in_a_write(child: Child, rng: random.Random, life_s: float) -> Callable[[], bool]:
    return lambda: being_written(child.folder, child.before)


def _after_a_write(child: Child, rng: random.Random, life_s: float) -> Callable[[], bool]:
    return lambda: newest_step(child.folder) > child.before


def _between_two_writes(child: Child, rng: random.Random, life_s: float) -> Callable[[], bool]:
    step = child.before + rng.randrange(1, SAVE_EVERY)
    # Before it says so, the log may hold what the process before it did and it will do again.
    return lambda: child.says(b"\ncompiled ") and last_logged(child.folder) >= step


# When a process is killed; the first three come first, so that few kills are of all these kinds.
MOMENTS = {
    "in a checkpoint's write": _in_a_write,
    "before the first step": _before_the_first_step,
    "between two writes": _between_two_writes,
    "after a write": _after_a_write,
    "anywhere": _somewhere,
}


def newest_step(folder: pathlib.Path) -> int:
    """Of the checkpoints that have their name."""
    return max(_steps(folder, "step_"), default=0)


def being_written(folder: pathlib.Path, beyond: int) -> bool:
    return any(step > beyond for step in _steps(folder, ".tmp-step_"))


def _steps(folder: pathlib.Path, prefix: str) -> list[int]:
    try:
        names = os.listdir(folder / checkpoints.FOLDER)
    except FileNotFoundError:
        return []
    return [int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)]


def last_logged(folder: pathlib.Path) -> int:
    """The step of the last complete line of the metrics."""
    try:
        lines = (folder / METRICS_FILE).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0
