"""A run with a tracker is the run without one, and the tracker has all of it."""

import json
import os
import subprocess
import sys

import job_runs

# Stands for the package: writes what it is given, a line each.
WANDB = """
import json, pathlib

FILE = pathlib.Path(__file__).with_name("logged.jsonl")
step = 0


def login(**_):
    return False


def Settings(**settings):
    return settings


def Table(columns, data):
    return data


def init(**options):
    import sys
    return sys.modules[__name__]


def log(values, step):
    with open(FILE, "a") as file:
        file.write(json.dumps({"step": step, **values}) + "\\n")


def finish():
    pass
"""


def test_a_tracked_run_is_the_same_run(finished, config, launch, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "wandb.py").write_text(WANDB)
    env = {
        **os.environ,
        "PYTHONPATH": str(packages),
        "XDG_CACHE_HOME": str(launch.cwd),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {job_runs.QUICK_COMPILES}",
    }
    folder = tmp_path / "run"
    command = [config, f"--workdir={folder}", "--config.train.trackers=wandb"]
    done = subprocess.run(
        [sys.executable, str(job_runs.LAUNCH), *command], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    job_runs.assert_same_run(folder, job_runs.fingerprint(finished))

    logged = job_runs.records(packages / "logged.jsonl")
    got = {}
    for record in logged:
        got.setdefault(record.pop("step"), {}).update(record)
    want = {}
    for record in job_runs.records(folder / "metrics.jsonl"):
        step, split = record.pop("step"), record.pop("split")
        want.setdefault(step, {}).update({f"{split}/{name}": v for name, v in record.items()})
    for record in job_runs.records(folder / "samples.jsonl"):
        text = record["prompt"] + record["text"]
        cell = [[record["step"], record["temperature"], text]]
        want[record["step"]]["samples/temperature_0.8"] = cell
    assert got == want and len(want) == 48, json.dumps(sorted(got))
