"""--job=verify_resume: killed runs come back as they were, and one that does not is found."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from job_runs import assert_same_run, fingerprint, records, write_text

from jaxlm.io import checkpoints
from jaxlm.io.run_differences import first_difference, read_leaves
from jaxlm.jobs import verify_resume
from jaxlm.jobs.configs import read_config


def test_what_is_promised_on_a_gpu_names_the_flag_that_its_runs_get(tmp_path, monkeypatch):
    """Sums on a GPU come in any order unless XLA is told otherwise; the user's own flags stay."""
    started = {}

    class Process:
        def __init__(self, command, *, env, **_):
            started.update(env)

    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setattr(verify_resume.subprocess, "Popen", Process)
    verify_resume.Child(tmp_path, tmp_path / "run")
    assert started["XLA_FLAGS"].split() == ["--xla_dump_to=x", "--xla_gpu_deterministic_ops=true"]
    promise = verify_resume.PROMISES["gpu"]
    assert "--xla_gpu_deterministic_ops=true" in promise and "rounding" in promise
    assert (
        "bit for bit" in verify_resume.PROMISES["cpu"]
        and "same number" in (verify_resume.PROMISES["tpu"])
    )


@pytest.fixture
def cfg(config):
    return read_config(config.removeprefix("--config="))


# A second for each run, and not on trial here.
NO_CHARTS = """
from jaxlm.reports import run_report
run_report.chart = lambda *args, **options: "<svg></svg>"
"""


@pytest.fixture
def children(launch, monkeypatch):
    """Environment of the children of a job that runs in this process; they draw nothing."""
    for name, value in launch.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(verify_resume, "CHILD", NO_CHARTS + verify_resume.CHILD)


@pytest.mark.parametrize(
    ("num_kills", "num_steps"), [(1, 48), pytest.param(3, 96, marks=pytest.mark.slow)]
)
def test_kills_leave_no_trace(children, cfg, tmp_path, capsys, num_kills, num_steps):
    """Inside a checkpoint's write, before the first step, and between two checkpoints."""
    short = verify_resume.shortened(cfg, num_steps, 1)
    assert verify_resume.compare(short, tmp_path / "new", num_kills=num_kills, seed=0) is None
    unbroken, killed = tmp_path / "new/unbroken", tmp_path / "new/killed"
    assert_same_run(killed, fingerprint(unbroken))
    steps = [r["step"] for r in records(killed / "metrics.jsonl") if r["split"] == "train"]
    assert steps == list(range(1, num_steps + 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "promise   cpu: equal bit for bit"
    whens = [line.split(": ")[1].split(", at")[0] for line in lines[1:]]
    assert whens == list(verify_resume.MOMENTS)[:num_kills]


# Of the run that is killed the first process waits for it, however late it comes.
FORGETFUL = """
import sys, time
from jaxlm.jobs import train
batch_at, calls = train.batch_at, iter(range(10**9))

def forgetful(split, seed, step, **options):
    call = next(calls)
    if call == step == 40 and sys.argv[2].endswith("killed"):
        time.sleep(600)
    return batch_at(split, seed, call, **options)

train.batch_at = forgetful
"""


def test_an_iterator_that_is_not_saved_is_found(children, cfg, tmp_path, monkeypatch):
    """The usual mistake: batches are counted from the start of the process."""
    monkeypatch.setattr(verify_resume, "CHILD", FORGETFUL + verify_resume.CHILD)
    monkeypatch.setattr(verify_resume, "MOMENTS", {"after": verify_resume._after_a_write})
    silent = dataclasses.replace(cfg.train, sample_every=None, sample_tokens=0)
    short = verify_resume.shortened(dataclasses.replace(cfg, train=silent), 48, 8)
    found = verify_resume.compare(short, tmp_path / "new", num_kills=1, seed=0)
    assert found.startswith("metrics.jsonl, line "), found
    killed = records(tmp_path / "new/killed/metrics.jsonl")
    line = int(found.split("line ")[1].split(":")[0])
    assert killed[line - 1]["step"] > 16  # the first checkpoint, from which it can have gone on


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(launch, config):
    """In calls of 1 and of 8 steps."""
    with launch.start("--job=verify_resume", config, "--kills=20", "--seed=1") as process:
        out, err = process.communicate(timeout=3000)
    assert (process.returncode, err) == (0, ""), out
    assert out.count("\nkilled ") >= 40 and out.count("\nequal ") == 2


def test_where_two_runs_differ_is_named(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    assert first_difference(finished, other) is None

    leaves = read_leaves(checkpoints.newest_good(finished)[0])
    changed = {name: leaf.copy() for name, leaf in leaves.items()}
    changed["params/blocks/wq"][0, 3, 1, 2] *= 1 + 2**-20
    with checkpoints.Checkpointer(other) as writer:
        writer.save(48, changed)
    found = first_difference(finished, other)
    assert found.startswith("params/blocks/wq[0, 3, 1, 2]: ") and "1 of its 256 numbers" in found

    log = other / "metrics.jsonl"
    lines = log.read_text().splitlines()
    record = json.loads(lines[4])
    lines[4] = json.dumps(record | {"grad_norm": np.nextafter(record["grad_norm"], 9)})
    log.write_text("\n".join(lines) + "\n")
    assert first_difference(finished, other).startswith("metrics.jsonl, line 5: grad_norm ")
    log.write_text("\n".join(lines[:4]) + "\n")
    assert "line 5: " in first_difference(finished, other)


def test_zeros_of_two_signs_are_different(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    leaves = read_leaves(checkpoints.newest_good(finished)[0])
    for folder, zero in ((finished, 0.0), (other, -0.0)):
        copy = tmp_path / f"zero{zero}"
        shutil.copytree(folder, copy)
        with checkpoints.Checkpointer(copy) as writer:
            writer.save(48, leaves | {"hypers/b1": np.float32(zero)})
    assert "hypers/b1" in first_difference(tmp_path / "zero0.0", tmp_path / "zero-0.0")


@pytest.mark.parametrize(
    "flags, fragments",
    [
        (["--steps=12"], ["--steps=12", "multiple of 8"]),
        (["--kills=0"], ["kills", "0"]),
        (["--config.model.num_heads=3"], ["num_heads=3"]),
    ],
)
def test_bad_input(launch, config, tmp_path, flags, fragments):
    outcome = launch("--job=verify_resume", config, f"--workdir={tmp_path}/new", *flags)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert all(fragment in outcome.err for fragment in fragments)
    assert not os.listdir(tmp_path)


def test_what_the_run_refuses_and_a_folder_in_use(launch, config, tmp_path):
    folder = tmp_path / "new"
    text = tmp_path / "text.txt"
    write_text(text, 5)
    short = f"--config.data.path={text}"
    outcome = launch("--job=verify_resume", config, f"--workdir={folder}", short)
    assert outcome.code == 2 and "context_length" in outcome.err, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.count("launch.py") == 1
    outcome = launch("--job=verify_resume", config, f"--workdir={folder}")
    assert outcome.code == 2 and "must be empty" in outcome.err
