"""Every job takes every kind of model: train, go on, evaluate, sample, sweep, prove; no export."""

import json
import shutil

import pytest
from job_runs import fingerprint, records
from tiny_kinds import TINY_KINDS

SHORT = [
    *("--config.train.num_steps=16", "--config.train.save_every=8", "--config.train.eval_every=8"),
    *("--config.train.sample_every=none", "--config.optim.schedule=constant"),
    *("--config.optim.warmup_steps=0", "--config.optim.peak_lr=0.01"),
]
CARRIED = [
    "--config.model.kind=lstm",
    "--config.model.d_model=16",
    "--config.model.num_layers=2",
    "--config.model.carry_state=true",
    "--config.data.order=contiguous",
]


def flags(kind):
    given = TINY_KINDS[kind].items()
    return [f"--config.model.{name}={str(value).lower()}" for name, value in given]


RUNS = {
    "carried": CARRIED,
    **{kind: flags(kind) for kind in ("gru", "mlp_norm", "tcn", "bigram")},
}


@pytest.fixture(scope="module")
def runs(launch, config, tmp_path_factory):
    """`runs(name)`: the folder of a run of 16 steps."""
    root = tmp_path_factory.mktemp("kinds")

    def run(name):
        folder = root / name
        if not folder.exists():
            outcome = launch(config, *RUNS[name], *SHORT, f"--workdir={folder}")
            assert outcome.code == 0, outcome.err
            assert "attention none" in outcome.out
        return folder

    return run


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_trained_sampled_and_evaluated_to_the_same_number(launch, runs, name):
    folder = runs(name)
    trained = [r["loss"] for r in records(folder / "metrics.jsonl") if r["split"] == "train"]
    assert trained[-1] < trained[0]
    last = [r for r in records(folder / "metrics.jsonl") if r["split"] == "validation"][-1]
    outcome = launch("--job=evaluate", f"--workdir={folder}", "--output=json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["loss"] == pytest.approx(last["loss"], rel=1e-6)
    sampled = launch("--job=sample", f"--workdir={folder}", "--prompt=the", "--num_tokens=9")
    assert sampled.code == 0 and len(sampled.out) >= 12, sampled.err
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["carried", "mlp_norm"])
def test_what_is_handed_on_is_in_the_checkpoint(launch, config, runs, tmp_path, name):
    """8 steps, and 8 more in another process: the run of 16."""
    folder = tmp_path / "run"
    first = [f.replace("num_steps=16", "num_steps=8") for f in SHORT]
    outcome = launch(config, *RUNS[name], *first, f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    outcome = launch(f"--workdir={folder}", "--config.train.num_steps=16")
    assert outcome.code == 0 and "resumed   at step 8" in outcome.out, outcome.err
    have, want = fingerprint(folder), fingerprint(runs(name))
    length = {"hypers/total_steps", "hypers/decay_steps"}  # that `constant` is told and ignores
    for path in want["state"].keys() - length:
        assert have["state"][path] == want["state"][path], path
    assert any(path.startswith("carry/") for path in want["state"])
    assert have["metrics.jsonl"] == want["metrics.jsonl"]


def test_weights_of_a_normalised_model_are_trained_on(launch, runs, tmp_path):
    start = f"--config.train.init_from={runs('mlp_norm')}"
    outcome = launch(start, f"--workdir={tmp_path}/more")
    assert outcome.code == 0 and "weights   of step 16" in outcome.out, outcome.err


SWEEP = """
from jaxlm.core.sweep import axis, product

def get_sweep():
    return product(axis("model.kind", "gru", "tcn"), axis("optim.peak_lr", 0.01, 0.02))
"""


def test_a_sweep_over_kinds(launch, config, tmp_path):
    path = tmp_path / "kinds.py"
    path.write_text(SWEEP)
    more = [f for f in SHORT if "peak_lr" not in f] + ["--config.model.num_layers=1"]
    outcome = launch(config, *more, f"--sweep={path}", f"--workdir={tmp_path}/sweep")
    assert outcome.code == 0, outcome.err
    assert "2 programs" in outcome.out
    header, *rows = (tmp_path / "sweep/table.csv").read_text().splitlines()
    assert header.startswith("point,model.kind,optim.peak_lr")
    assert {row.split(",")[1] for row in rows} == {"gru", "tcn"}


def test_runs_of_different_kinds_are_compared(launch, runs, tmp_path):
    names = ",".join(str(runs(name)) for name in ("gru", "tcn"))
    outcome = launch("--job=compare", f"--runs={names}", f"--workdir={tmp_path}/compared")
    assert outcome.code == 0, outcome.err
    assert "model.kind" in (tmp_path / "compared/compare.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", "mlp_norm", "tcn"])
def test_layouts_agree(launch, config, kind):
    outcome = launch.command("--job=check_layouts", "--shrink", config, *flags(kind))
    assert outcome.code == 0, outcome.out + outcome.err
    assert "all layouts agree" in outcome.out


def test_what_only_transformers_have_is_refused(launch, config, runs, tmp_path):
    outcome = launch("--job=export", f"--workdir={runs('gru')}", f"--target={tmp_path}/out")
    assert outcome.code == 2
    assert "model.kind=gru: only kind=transformer can be exported" in outcome.err
    outcome = launch("--job=explain", f"--workdir={runs('gru')}", "--prompt=the cat")
    assert outcome.code == 2 and "a model of kind gru has no attention" in outcome.err, outcome.err
    outcome = launch(config, *RUNS["gru"], *SHORT, "--config.train.attention=chunked")
    assert outcome.code == 2
    assert "--config.model.kind=gru has no attention" in outcome.err
    outcome = launch(config, "--config.model.kind=gru", "--config.model.num_heads=4")
    assert "RecurrentConfig has no field 'num_heads'" in outcome.err


def test_a_saved_run_from_before_there_were_kinds_goes_on(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["config"]["model"].pop("kind") == "transformer"
    (folder / "config.json").write_text(json.dumps(saved))
    outcome = launch(f"--workdir={folder}")
    assert outcome.code == 0 and "is finished" in outcome.out, outcome.err
