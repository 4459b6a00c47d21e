"""The three jobs through the real command on a tiny config: what must work on every interpreter."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
    "--config.model.context_length=16",
    "--config.model.num_layers=1",
    "--config.model.d_model=16",
    "--config.model.num_heads=2",
    "--config.data.batch_size=4",
    "--config.train.num_steps=20",
    "--config.train.eval_every=20",
    "--config.train.save_every=20",
    "--config.train.sample_tokens=8",
]


def launch(*args):
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    text = folder / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 100)
    done = launch(f"--workdir={folder / 'run'}", f"--config.data.path={text}", *TINY)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_train_learns_and_leaves_a_report(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train = [r["loss"] for r in records if r["split"] == "train"]
    validation = [r["loss"] for r in records if r["split"] == "validation"]
    assert validation[-1] < train[0] - 0.3
    assert "<svg" in (trained / "report.html").read_text()


def test_evaluate_recomputes_the_loss_from_the_checkpoint(trained):
    done = launch("--job=evaluate", f"--workdir={trained}", "--output=json")
    summary = json.loads((trained / "summary.json").read_text())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loss"] == summary["val_loss"]


def test_sample_continues_the_prompt(trained):
    done = launch("--job=sample", f"--workdir={trained}", "--prompt=to be", "--num_tokens=20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("to be") and len(done.stdout.rstrip("\n")) == 25
