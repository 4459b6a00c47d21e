"""What the three jobs do with a run: repeat, go on, evaluate, sample, start from it, break off."""

import json
import pathlib
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from job_runs import (
    TIMEOUT_S,
    assert_same_run,
    fingerprint,
    records,
    state_bytes,
    without_length,
)

from jaxlm.analysis.logit_lens import lens
from jaxlm.io import checkpoints
from jaxlm.jobs import sample, train
from jaxlm.models.transformer import build

SHORT = ["--config.train.num_steps=8", "--config.train.save_every=8"]
NO_SAMPLES = ["--config.train.sample_every=none", "--config.train.sample_tokens=0"]


def test_a_saved_config_repeats_the_run(launch, finished, tmp_path):
    outcome = launch(f"--config={finished}/config.json", f"--workdir={tmp_path}/b")
    assert outcome.code == 0, outcome.err
    assert_same_run(tmp_path / "b", fingerprint(finished))
    assert (tmp_path / "b/config.json").read_bytes() == (finished / "config.json").read_bytes()


@pytest.mark.slow
def test_another_seed_is_another_run(launch, config, finished, tmp_path):
    """The guard of every comparison here: runs that differ are told apart, part by part."""
    outcome = launch(config, "--config.seed=1", f"--workdir={tmp_path}/b")
    assert outcome.code == 0, outcome.err
    have, want = fingerprint(tmp_path / "b"), fingerprint(finished)
    for name in ("metrics.jsonl", "samples.jsonl", "summary", "state"):
        assert have[name] != want[name]
    same = {p for p in want["state"] if have["state"][p] == want["state"][p]}
    assert not any(path.startswith("params/") or path == "key" for path in same)


def test_a_finished_run_prints_its_result(launch, finished):
    before = fingerprint(finished)
    outcome = launch(f"--workdir={finished}")
    loss = json.loads((finished / "summary.json").read_text())["val_loss"]
    assert (outcome.code, outcome.err) == (0, "")
    assert "is finished: step 48" in outcome.out and f"{loss:.4f} nats" in outcome.out
    assert outcome.out.count("\n") == 1
    assert_same_run(finished, before)


def test_a_run_is_opened_from_python_as_the_readme_says(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    _, code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(code, names := {"__name__": "readme"})
    run, logits, seen = (names[name] for name in ("run", "logits", "seen"))
    assert run.step == 48 and logits.shape == (1, len("the cat"), run.tokenizer.vocab_size)
    assert logits.shape[1] == seen.residual.shape[2] == seen.attention.shape[-1]
    last = seen.residual[-1, 0]  # through the final norm and the head it is the logits
    np.testing.assert_allclose(lens(run.params, last, run.cfg.model), logits[0], atol=1e-4)


def test_a_longer_run_goes_on(launch, finished, tmp_path):
    """That it equals one that was long from its start is shown below, after a signal."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    outcome = launch(f"--workdir={folder}", "--config.train.num_steps=64")
    assert outcome.code == 0, outcome.err
    assert "changed   train.num_steps: 48 -> 64\n" in outcome.out
    assert "resumed   at step 48" in outcome.out
    assert json.loads((folder / "config.json").read_text())["config"]["train"]["num_steps"] == 64
    assert json.loads((folder / "summary.json").read_text())["step"] == 64
    steps = [r["step"] for r in records(folder / "metrics.jsonl") if r["split"] == "train"]
    assert steps == list(range(1, 65))


def test_evaluate_gives_the_digits_of_the_log(launch, finished):
    outcome = launch("--job=evaluate", f"--workdir={finished}", "--output=json")
    assert (outcome.code, outcome.err) == (0, "")
    logged = [r for r in records(finished / "metrics.jsonl") if r["split"] == "validation"][-1]
    logged.pop("split")
    assert json.loads(outcome.out) == logged
    text = launch("--job=evaluate", f"--workdir={finished}")
    assert f"step 48: loss {logged['loss']:.4f} nats" in text.out


def test_evaluate_the_best_checkpoint(launch, finished):
    best = launch("--job=evaluate", f"--workdir={finished}", "--output=json", "--checkpoint=best")
    step = checkpoints.best(finished)[1]["step"]
    logged = {r["step"]: r for r in records(finished / "metrics.jsonl") if r["split"] != "train"}
    assert json.loads(best.out)["loss"] == logged[step]["loss"]


def test_samples_follow_the_seed(launch, finished):
    def text(*flags):
        outcome = launch("--job=sample", f"--workdir={finished}", "--prompt=the", *flags)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out

    flags = ("--num_tokens=40", "--temperature=1")
    one = text(*flags)
    assert one == text(*flags)
    assert one != text(*flags, "--seed=1")
    assert one.startswith("the") and len(one) == len("the") + 40 + len("\n")
    assert text("--num_tokens=9", "--temperature=0") == text(
        "--num_tokens=9", "--top_k=1", "--seed=5"
    )

    three = text(*flags, "--num_samples=3")
    assert three.count("--- sample ") == 3 and one in three
    bodies = [b.split("\n", 1)[1].rstrip("\n") for b in three.split("--- sample ")[1:]]
    assert len(set(bodies)) == 3


def test_the_weights_of_a_large_model_are_made_ready_for_decoding(
    monkeypatch, params_of, small_cfg
):
    model, params = build(small_cfg), params_of(small_cfg)
    assert sample.weights_to_read(model, params) is params
    monkeypatch.setattr(sample, "LARGE", 1)
    ready = sample.weights_to_read(model, params)
    jax.tree.map(np.testing.assert_array_equal, ready, model.decoding_params(params))


def test_a_run_starts_from_the_weights_of_another(launch, config, finished, tmp_path):
    """A rate of almost nothing leaves them as they are, so the first evaluation is the base's."""
    folder = tmp_path / "new"
    outcome = launch(
        config,
        f"--config.train.init_from={finished}",
        "--config.optim.peak_lr=1e-30",
        "--config.optim.weight_decay=0",
        *SHORT,
        *NO_SAMPLES,
        f"--workdir={folder}",
    )
    assert outcome.code == 0, outcome.err
    assert f"weights   of step 48 of {finished}" in outcome.out
    base, new = state_bytes(finished), state_bytes(folder)
    params = [path for path in base if path.startswith("params/")]
    assert params and all(base[path] == new[path] for path in params)
    assert new["step"] != base["step"]
    losses = [
        [r["loss"] for r in records(run / "metrics.jsonl") if r["split"] == "validation"]
        for run in (finished, folder)
    ]
    assert losses[0][-1] == losses[1][0]
    assert (folder / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()


ABSURD = ["--config.optim.name=sgd", "--config.optim.peak_lr=1e30", "--config.optim.warmup_steps=0"]


def test_a_loss_that_is_not_finite_stops_the_run(launch, config, tmp_path):
    outcome = launch(config, *ABSURD, f"--workdir={tmp_path}/run")
    assert outcome.code == 1, outcome
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("launch.py: step ")
    assert "peak_lr" in outcome.err and "on_nonfinite=skip" in outcome.err
    last = records(tmp_path / "run/metrics.jsonl")[-1]
    assert last["finite"] is False and f"step {last['step']}:" in outcome.err
    assert not (tmp_path / "run/summary.json").exists()
    found = checkpoints.newest_good(tmp_path / "run")
    kept = f"step {found[1]['step']} is saved" if found else "no step was saved before it"
    assert kept in outcome.err and f"python launch.py --workdir={tmp_path}/run" in outcome.err


def test_an_import_that_the_end_of_the_process_breaks_off_is_silent(monkeypatch):
    def broken_off():
        raise RuntimeError("cannot import after the end")

    monkeypatch.setattr(checkpoints, "preload", broken_off)
    train._preload()


def test_steps_that_are_not_finite_are_skipped_and_counted(launch, config, tmp_path):
    """And the count is that of the whole run, also where it was broken off."""
    args = [config, *ABSURD, "--config.train.on_nonfinite=skip"]
    unbroken, folder = tmp_path / "unbroken", tmp_path / "run"
    outcome = launch(*args, f"--workdir={unbroken}")
    assert outcome.code == 0, outcome.err
    summary = json.loads((unbroken / "summary.json").read_text())
    bad = [r["step"] for r in records(unbroken / "metrics.jsonl") if r.get("finite") is False]
    assert summary["num_skipped"] == len(bad) > 0
    assert f"({len(bad)} so far)" in outcome.out
    assert launch(*args, f"--workdir={folder}", crash=("_validate", 32, False)).code == "crash"
    assert launch(f"--workdir={folder}").code == 0
    assert_same_run(folder, fingerprint(unbroken))
    outcome = launch("--job=evaluate", f"--workdir={folder}", "--output=json")
    assert outcome.code == 0
    json.loads(outcome.out, parse_constant=pytest.fail)  # NaN is not JSON


def wait_for(path, process):
    end = time.monotonic() + TIMEOUT_S
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def endless(config):
    """A run that is still going on when a signal comes."""
    steps = {"num_steps": 800_000, "save_every": 400_000, "eval_every": 400_000, "log_every": 1000}
    flags = [f"--config.train.{name}={n}" for name, n in steps.items()]
    return [config, "--config.optim.schedule=constant", *NO_SAMPLES, *flags]


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_says_how_to_go_on(launch, endless, tmp_path, name, code):
    """In the same launch: a second process is refused while the first one holds the lock."""
    folder = tmp_path / "run"
    with launch.start(*endless, f"--workdir={folder}") as process:
        wait_for(folder / "metrics.jsonl", process)
        if name == "SIGTERM":
            refused = launch(f"--workdir={folder}")
            assert refused.code == 2 and refused.err.count("\n") == 1
            assert f"--workdir={folder}: in use by process {process.pid}" in refused.err
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (code, "")
    assert f"stopped   by {name}" in out and f"python launch.py --workdir={folder}\n" in out
    _, manifest = checkpoints.newest_good(folder)
    step = manifest["step"]
    assert step and step % 8 == 0
    if name == "SIGINT":
        return
    # The run that was stopped here, taken on by 16 steps, is the one that never was.
    end = [f"--config.train.{n}={step + 16}" for n in ("num_steps", "save_every", "eval_every")]
    outcome = launch(f"--workdir={folder}", *end)
    assert outcome.code == 0, outcome.err
    assert f"resumed   at step {step}" in outcome.out
    flags = [flag for flag in endless if flag.split("=")[0] not in {f.split("=")[0] for f in end}]
    assert launch(*flags, *end, f"--workdir={tmp_path}/unbroken").code == 0
    assert without_length(fingerprint(folder)) == without_length(fingerprint(tmp_path / "unbroken"))


def test_a_second_signal_does_not_wait(launch, config, tmp_path):
    """The first one is taken up at the end of the loop's call, which is long here."""
    folder = tmp_path / "run"
    names = ("num_steps", "steps_per_call", "save_every", "eval_every")
    flags = [*NO_SAMPLES, *(f"--config.train.{name}=400000" for name in names)]
    with launch.start(config, *flags, f"--workdir={folder}") as process:
        wait_for(folder / "timings.jsonl", process)
        process.send_signal(signal.SIGTERM)
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("SIGTERM: finishing") for line in lines)
        process.send_signal(signal.SIGTERM)  # one that is sent before may become one with the first
        out = "".join(lines)
        process.wait(TIMEOUT_S)
    assert process.returncode == 143
    assert "stopped" not in out and (folder / "metrics.jsonl").read_bytes() == b""
    assert not any((folder / "checkpoints").iterdir())
