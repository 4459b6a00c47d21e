"""The losses of a tiny run, as they were when this was written."""

import json
import pathlib

import pytest
from job_runs import records

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tiny_run_losses.json"


def test_the_losses_of_a_tiny_run(launch, config, tmp_path):
    """Within 2e-4: libraries may round and fuse otherwise, and 20 steps amplify that."""
    golden = json.loads(GOLDEN.read_text())
    outcome = launch(config, *golden["flags"], f"--workdir={tmp_path}/run")
    assert outcome.code == 0, outcome.err
    logged = records(tmp_path / "run/metrics.jsonl")
    losses = {split: [r["loss"] for r in logged if r["split"] == split] for split in golden["loss"]}
    assert losses["train"] == pytest.approx(golden["loss"]["train"], abs=golden["tolerance"])
    assert losses["validation"] == pytest.approx(
        golden["loss"]["validation"], abs=golden["tolerance"]
    )
