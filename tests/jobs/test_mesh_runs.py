"""Runs on several devices: a run that moves from mesh to mesh, adapters, what is refused."""

import json

import job_runs
import numpy as np
import pytest
from job_runs import records


def mesh(data=1, fsdp=1, tensor=1):
    """Flags; the 17 characters of the text do not divide among two devices."""
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "whole": "vocab"}
    return [f"--config.mesh.{name}={size}" for name, size in sizes.items()]


@pytest.fixture(scope="module")
def launch_on_four(tmp_path_factory):
    """As `launch`, in a process with four devices."""
    launcher = job_runs.Launcher(tmp_path_factory.mktemp("cache4"), devices=4)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def moved(launch, launch_on_four, config, tmp_path_factory):
    """(folder of a run begun under FSDP+TP, gone on with by DP, ended on one device; outputs)."""
    folder = tmp_path_factory.mktemp("moved") / "run"
    outcomes = [
        launch_on_four(
            config, f"--workdir={folder}", *mesh(fsdp=2, tensor=2), crash=("_validate", 16, False)
        ),
        launch_on_four(f"--workdir={folder}", *mesh(data=4), crash=("_validate", 32, False)),
        launch_on_four("--job=evaluate", f"--workdir={folder}", "--output=json"),
        launch("--job=evaluate", f"--workdir={folder}", "--output=json"),
        launch(f"--workdir={folder}", *mesh()),
    ]
    return folder, outcomes


def test_a_run_moves_from_mesh_to_mesh_and_stays_the_same_run(moved, finished):
    """To 1e-4 after 48 steps of AdamW, which divides rounding by small numbers; with dropout."""
    folder, outcomes = moved
    assert [o.code for o in outcomes] == ["crash", "crash", 0, 0, 0], outcomes
    assert "devices   4 of 4: fsdp 2, tensor 2" in outcomes[0].out
    assert "devices   4 of 4: data 4" in outcomes[1].out
    assert "changed   mesh.fsdp: 2 -> 1" in outcomes[1].out
    assert "resumed   at step 16" in outcomes[1].out
    assert "resumed   at step 32" in outcomes[4].out
    got, want = records(folder / "metrics.jsonl"), records(finished / "metrics.jsonl")
    assert [r["step"] for r in got] == [r["step"] for r in want]
    for name in ("loss", "bits_per_byte"):
        np.testing.assert_allclose([r[name] for r in got], [r[name] for r in want], rtol=1e-4)
    state, exact = job_runs.state_bytes(folder), job_runs.state_bytes(finished)
    assert state.keys() == exact.keys()
    for path in state:
        if path.startswith("params/"):
            pair = (np.frombuffer(x[path], np.float32) for x in (state, exact))
            np.testing.assert_allclose(*pair, atol=1e-4, err_msg=path)
        elif not path.startswith("opt_state/"):
            assert state[path] == exact[path], path


def test_a_checkpoint_of_many_devices_is_evaluated_there_and_on_one(moved):
    there, here = (json.loads(outcome.out.splitlines()[-1]) for outcome in moved[1][2:4])
    assert there["step"] == here["step"] == 32
    assert there["num_tokens"] == here["num_tokens"]
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-6)


def test_adapters_start_from_a_base_that_is_split_too(
    launch, launch_on_four, config, finished, tmp_path
):
    adapters = ["--config.lora.rank=2", f"--config.train.init_from={finished}"]
    short = ["--config.train.num_steps=16", "--config.train.sample_tokens=0"]
    args = [config, *adapters, *short]
    alone = launch(*args, f"--workdir={tmp_path}/one")
    many = launch_on_four(*args, *mesh(fsdp=2, tensor=2), f"--workdir={tmp_path}/four")
    assert (alone.code, many.code) == (0, 0), many.err
    assert "weights   of step 48" in many.out
    one, four = (records(tmp_path / name / "metrics.jsonl") for name in ("one", "four"))
    np.testing.assert_allclose([r["loss"] for r in four], [r["loss"] for r in one], rtol=1e-5)


def test_what_cannot_be_split_leaves_no_folder(launch_on_four, config, tmp_path):
    outcome = launch_on_four(config, *mesh(tensor=4), f"--workdir={tmp_path}/run")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "blocks/wk: dimension 2 (kv_heads) is 2, not a multiple of 4" in outcome.err
    assert not (tmp_path / "run").exists()
    outcome = launch_on_four(config, *mesh(data=8), f"--workdir={tmp_path}/run")
    assert outcome.code == 2 and "8 devices are needed, there are 4 (cpu)" in outcome.err


def test_inspect_lists_every_array_and_file_of_a_checkpoint(launch, finished):
    outcome = launch("--job=inspect", f"--workdir={finished}")
    assert outcome.code == 0, outcome.err
    rows = {row.split()[0]: row.split() for row in outcome.out.splitlines() if row}
    manifest = json.loads(launch("--job=inspect", f"--workdir={finished}", "--output=json").out)
    assert manifest["step"] == 48 and "step_00000048: step 48" in outcome.out
    assert set(manifest["leaves"]) | set(manifest["files"]) <= set(rows)
    state = job_runs.state_bytes(finished)
    for name in manifest["leaves"]:
        assert rows[name][-1] == f"{len(state[name]):,}", name
    for name, file in manifest["files"].items():
        assert rows[name][-1] == file["sha256"]
    params = sum(len(x) for name, x in state.items() if name.startswith("params/"))
    assert rows["params"][-1] == f"{params:,}"
