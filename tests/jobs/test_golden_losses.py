"""The losses of a tiny run, as they were when this was written."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from job_runs import ROOT, TIMEOUT_S, records

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_run_losses.json"


def test_the_losses_of_a_tiny_run(tmp_path):
    """By the command beside them, in a process and with a cache of its own."""
    golden = json.loads(GOLDEN.read_text())
    words = shlex.split(golden["command"].replace("WORKDIR", str(tmp_path / "run")))
    python = words.index("python")
    settings = dict(word.split("=", 1) for word in words[:python])
    done = subprocess.run(
        [sys.executable, *words[python + 1 :]],
        cwd=ROOT,
        env=os.environ | settings | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    logged = records(tmp_path / "run/metrics.jsonl")
    for split, losses in golden["loss"].items():
        found = [record["loss"] for record in logged if record["split"] == split]
        assert found == pytest.approx(losses, abs=golden["tolerance"])
