"""--sweep: one table and one best point out of many runs, however often it is broken off."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from job_runs import LAUNCH, ROOT, snapshot

from jaxlm.core.config import apply_overrides
from jaxlm.io import checkpoints
from jaxlm.jobs.sweep import table_rows
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values

SWEEP = """
from jaxlm.core.sweep import axis, product


def get_sweep():
    return product(axis("optim.peak_lr", 0.003, 0.03), axis("seed", 0, 1))
"""
SHORT = [
    *(f"--config.train.{n}" for n in ("num_steps=16", "save_every=8", "log_every=4")),
    "--config.model.dropout=0",
]


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "rates.py"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def swept(launch, config, sweep_file, tmp_path_factory):
    """(folder of the sweep, what it printed)."""
    folder = tmp_path_factory.mktemp("swept") / "s"
    outcome = launch(f"--sweep={sweep_file}", config, *SHORT, f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    return folder, outcome.out


def table(folder):
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_one_program_one_table_and_the_best_point(swept):
    folder, out = swept
    assert "4 points over optim.peak_lr, seed" in out
    assert "1 program to train them" in out
    rows = table(folder)
    assert [int(r["step"]) for r in rows if r["point"] == "2"] == [1, 4, 8, 12, 16]
    assert {(r["optim.peak_lr"], r["seed"]) for r in rows} == {
        (lr, seed) for lr in ("0.003", "0.03") for seed in "01"
    }
    finals = {
        lr: np.mean(
            [float(r["val_loss"]) for r in rows if r["step"] == "16" and r["optim.peak_lr"] == lr]
        )
        for lr in ("0.003", "0.03")
    }
    best = min(finals, key=finals.get)
    assert f"best      optim.peak_lr={best}: validation loss {finals[best]:.1f}" in out
    assert "95% t interval over 2 seeds" in out
    assert (folder / "report.html").exists()
    assert (folder / "figures" / "loss_by_axis.png").exists()


def test_a_point_is_the_run_of_its_config(launch, swept, tmp_path):
    """To rounding: a lane sums in another order than a run alone."""
    folder, _ = swept
    outcome = launch(f"--config={folder}/points/0003/config.json", f"--workdir={tmp_path}/run")
    assert outcome.code == 0, outcome.err
    alone = json.loads((tmp_path / "run/summary.json").read_text())
    [final] = [r for r in table(folder) if r["point"] == "3" and r["step"] == "16"]
    assert float(final["val_loss"]) == pytest.approx(alone["val_loss"], rel=1e-5)


@pytest.mark.parametrize("mode", ["skip", "stop"])
def test_the_rate_in_the_table_is_that_of_the_updates_done(mode):
    """Of two lanes the second skips the first step of the call, as it did two before."""
    cfg = apply_overrides(
        RunConfig(), {"train.num_steps": 40, "train.log_every": 1, "train.on_nonfinite": mode}
    )
    ok = np.array([[1, 1, 1], [0, 1, 1]], np.float32)
    values = {"loss": np.ones((2, 3)), "finite": ok}
    num_skipped = np.array([0, 2]) if mode == "skip" else np.zeros(2, int)
    numbers = hyper_values(apply_overrides(cfg, {"optim.warmup_steps": 20}))
    rows = table_rows([cfg] * 2, [0, 1], [numbers] * 2, 13, 10 - num_skipped, values, {})
    updates = {0: [10, 11, 12], 1: [8, 8, 9] if mode == "skip" else [10, 11, 12]}
    for place, counts in updates.items():
        rates = [row["learning_rate"] for row in rows if row["point"] == place]
        np.testing.assert_allclose(rates, [1e-3 * n / 20 for n in counts], rtol=1e-6)


def test_a_finished_sweep_trains_nothing_again(launch, config, sweep_file, swept):
    folder, _ = swept
    before = {n: b for n, b in snapshot(folder / "points").items() if b is not None}
    outcome = launch(f"--sweep={sweep_file}", config, *SHORT, f"--workdir={folder}")
    assert outcome.code == 0 and "kept      4 finished points" in outcome.out
    assert "group" not in outcome.out
    assert {n: b for n, b in snapshot(folder / "points").items() if b is not None} == before


def test_points_one_by_one_merge_into_the_same_sweep(launch, config, sweep_file, swept, tmp_path):
    folder = tmp_path / "s"
    args = [f"--sweep={sweep_file}", config, *SHORT, f"--workdir={folder}"]
    first = launch(*args, "--sweep_index=2")
    assert first.code == 0 and "finished  1 of 4 points" in first.out, first.err
    rest = launch(*args)
    assert rest.code == 0 and "group     1/1: 3 points" in rest.out, rest.err
    for got, want in zip(table(folder), table(swept[0]), strict=True):
        assert (got["point"], got["step"]) == (want["point"], want["step"])
        assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-5)


# From outside it might come when all is over.
KILLED = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from jaxlm.io.checkpoints import Checkpointer

save = Checkpointer.save


def save_and_end(self, step, state, **options):
    save(self, step, state, **options)
    if step == 16:
        os.kill(os.getpid(), signal.SIGKILL)


Checkpointer.save = save_and_end
sys.argv[0] = {str(LAUNCH)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_sweep_ends_as_the_unbroken_one(launch, config, sweep_file, tmp_path):
    """SIGKILL once a checkpoint of all lanes is there: the table is that of the unbroken sweep."""
    every = [f"--config.train.{n}" for n in ("eval_every=8", "save_every=8", "log_every=8")]
    args = [f"--sweep={sweep_file}", config, *every]
    folder = tmp_path / "s"
    command = [sys.executable, "-c", KILLED, *args, f"--workdir={folder}"]
    done = subprocess.run(command, env=launch.env, cwd=launch.cwd, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [group] = (folder / "groups").iterdir()
    assert checkpoints.newest_good(group)[1]["step"] in (8, 16)
    assert not list((folder / "points").glob("*/rows.json"))
    again = launch(*args, f"--workdir={folder}")
    assert again.code == 0 and "resumed   at step" in again.out, again.err
    assert launch(*args, f"--workdir={tmp_path}/unbroken").code == 0
    unbroken = (tmp_path / "unbroken/table.csv").read_bytes()
    assert (folder / "table.csv").read_bytes() == unbroken


BAD = {
    "no_field.py": ('axis("optim.peak_lt", 1e-3)', "did you mean 'peak_lr'?"),
    "empty.py": ('axis("seed")', 'axis("seed"): empty'),
    "twice.py": ('product(axis("seed", 0), axis("seed", 1))', "two axes set seed"),
    "no_value.py": ('axis("optim.peak_lr", "fast")', "expected float"),
    "no_points.py": ("[]", "gave no points"),
    "no_list.py": ("3", "must return a list of points"),
    "no_pair.py": ('axis("model.num_heads", 3)', "d_model=16 must be a multiple of num_heads=3"),
    "crash.py": ("1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sweep_is_one_line(launch, config, tmp_path, name):
    expression, message = BAD[name]
    path = tmp_path / name
    path.write_text(
        f"from jaxlm.core.sweep import *\n\n\ndef get_sweep():\n    return {expression}\n"
    )
    outcome = launch(f"--sweep={path}", config, f"--workdir={tmp_path}/s")
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert f"--sweep={path}" in outcome.err and message in outcome.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sweep=nowhere.py"], "expected a .py file with get_sweep()"),
        (["--sweep={file}", "--config.seed=3"], "--config.seed: the sweep sets this field itself"),
        (["--sweep={file}", "--config.mesh.fsdp=2"], "point 0: a sweep spreads its runs over the"),
        (["--sweep={file}", "--sweep_index=4"], "the sweep has 4 points, 0 to 3"),
        (["--sweep={file}", "--sweep_index=1", "--workdir="], "expected a value"),
        (["--sweep_index=1"], "of which sweep? give --sweep"),
        (["--sweep={file}", "--job=train"], "--job and --sweep: give one of the two"),
        (["--experiment=copy_tusk"], "did you mean 'copy_task'?"),
        (["--experiment=copy_task", "--config.num_sedes=1"], "did you mean 'num_seeds'?"),
        (["--experiment=copy_task", "--config.scale=huge"], "expected one of small, default, full"),
        (["--experiment=copy_task", "--config.num_symbols=8"], "num_symbols=8 must be at least 64"),
        (["--experiment=copy_task", "--config=nowhere.json"], "nowhere.json"),
    ],
)
def test_a_bad_flag_is_one_line(launch, config, sweep_file, tmp_path, flags, message):
    flags = [flag.format(file=sweep_file) for flag in flags]
    if "--experiment" not in flags[0]:
        flags.append(config)
    if not any("--workdir" in flag for flag in flags):
        flags.append(f"--workdir={tmp_path}/s")
    outcome = launch(*flags)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert message in outcome.err
    assert not (tmp_path / "s").exists()


def test_another_sweep_does_not_go_into_the_folder(launch, config, sweep_file, swept):
    outcome = launch(f"--sweep={sweep_file}", config, f"--workdir={swept[0]}")
    assert outcome.code == 2 and "holds another sweep" in outcome.err
