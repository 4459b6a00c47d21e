"""A run that was broken off, anywhere and any number of times, ends as the unbroken one."""

import json
import os
import random
import shutil
import signal
import time

import pytest
from job_runs import assert_same_run, fingerprint, records

CRASHES = [
    ("_log_steps", 8, True),  # before any checkpoint
    ("save", 16, False),  # metrics written, nothing saved
    ("_validate", 16, False),  # saved, not evaluated
    ("_validate", 32, True),  # evaluated, not recorded in the resume's memory
    ("_write_samples", 48, False),  # the last step saved and evaluated, no sample
    ("write_summary", 48, False),
]


def test_a_run_broken_off_at_every_edge_ends_as_the_unbroken_one(
    launch, config, finished, tmp_path
):
    folder = tmp_path / "run"
    for crash in CRASHES:
        outcome = launch(config, f"--workdir={folder}", crash=crash)
        assert outcome.code == "crash", outcome
        for log in ("metrics.jsonl", "samples.jsonl"):  # and the last line was half on the disk
            with (folder / log).open("a") as file:
                file.write('{"step": 4')
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    assert "resumed   at step 48" in outcome.out
    assert_same_run(folder, fingerprint(finished))


def test_a_run_broken_off_before_its_report_still_gets_one(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0
    assert_same_run(folder, fingerprint(finished))


LONG = (
    "--config.train.steps_per_call={}",
    "--config.train.num_steps=208",
    "--config.train.eval_every=16",
    "--config.train.save_every=16",
    "--config.train.sample_every=48",
)


def long_run(config, steps_per_call, folder):
    return [config, *(arg.format(steps_per_call) for arg in LONG), f"--workdir={folder}"]


def kill_when(process, condition, delay_s=0.0) -> bool:
    """SIGKILL at the moment `condition` holds; False where the process ended before."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.003)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def newest_step(folder) -> int:
    try:
        names = os.listdir(folder / "checkpoints")
    except FileNotFoundError:
        return 0
    return max((int(n.removeprefix("step_")) for n in names if n.startswith("step_")), default=0)


def being_written(folder, beyond) -> bool:
    try:
        names = os.listdir(folder / "checkpoints")
    except FileNotFoundError:
        return False
    return any(n.startswith(".tmp-step_") and int(n[-8:]) > beyond for n in names)


def last_logged(folder) -> int:
    """The step of the last complete line of metrics.jsonl."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def test_three_kills_leave_no_trace(launch, config, tmp_path):
    """Inside a checkpoint's writing, right after it got its name, and between two of them."""
    folder = tmp_path / "run"
    args = long_run(config, 1, folder)

    with launch.start(*args) as process:
        assert kill_when(process, lambda: being_written(folder, 16))
    with launch.start(*args) as process:
        assert kill_when(process, lambda: newest_step(folder) >= 80)
    assert not (folder / "summary.json").exists()
    with launch.start(*args) as process:
        assert kill_when(process, lambda: last_logged(folder) >= newest_step(folder) + 9 > 120)
    outcome = launch.command(*args)
    assert (outcome.code, outcome.err) == (0, "")

    unbroken = tmp_path / "unbroken"
    assert launch(*long_run(config, 1, unbroken)).code == 0
    assert [r["step"] for r in records(folder / "metrics.jsonl") if r["split"] == "train"] == list(
        range(1, 209)
    )
    assert_same_run(folder, fingerprint(unbroken))


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_twenty_kills_leave_no_trace(launch, config, tmp_path, steps_per_call):
    """Kills at random moments: a quarter anywhere in a process's life, the rest in its training."""
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    began = time.monotonic()
    outcome = launch.command(*long_run(config, steps_per_call, unbroken))
    life_s = time.monotonic() - began
    assert outcome.code == 0, outcome.err

    rng, kills = random.Random(steps_per_call), 0
    args = long_run(config, steps_per_call, folder)
    while kills < 20:
        with launch.start(*args) as process:
            if rng.random() < 0.25:
                killed = kill_when(process, lambda: True, rng.uniform(0, life_s / 2))
            else:
                before = newest_step(folder)
                moments = [
                    lambda b=before: being_written(folder, b),
                    lambda b=before: newest_step(folder) > b,
                    lambda b=before: last_logged(folder) > b + rng.randrange(10),
                ]
                killed = kill_when(process, rng.choice(moments), rng.uniform(0, 0.02))
        if not killed:  # it came to its end: once more, from the start
            assert process.returncode == 0, process.stderr
            assert_same_run(folder, fingerprint(unbroken))
            shutil.rmtree(folder)
        kills += killed
    outcome = launch.command(*args)
    assert (outcome.code, outcome.err) == (0, "")
    assert_same_run(folder, fingerprint(unbroken))
