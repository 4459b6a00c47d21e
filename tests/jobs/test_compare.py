"""--job=compare on folders written by hand, so that every number in the table is known."""

import dataclasses
import json
import math
import types

import pytest

from jaxlm import jobs
from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.io import workdir
from jaxlm.models.transformer import TransformerConfig
from jaxlm.train.config import RunConfig, TrainConfig

MODEL = TransformerConfig(
    vocab_size=10, context_length=8, num_layers=1, d_model=4, num_heads=1, d_ff=6,
    activation="relu", norm_placement="none", tied_head=True,
)  # fmt: skip
BASE = RunConfig(model=MODEL, train=TrainConfig(num_steps=40, eval_every=10, save_every=10))
BASE = apply_overrides(BASE, {"data.batch_size": 5})
# Embedding, which is the head too; wq, wk, wv, wo; two feed-forward matrices.
NUM_PARAMS = 10 * 4 + 4 * 4 * 4 + 2 * 4 * 6
TOKENS_A_STEP = 5 * 8


def write_run(folder, overrides=None, last=40, losses=(3.0, 2.5, 2.0, 2.25), **tokenization):
    """A run's folder with a validation every 10 steps up to `last`; finished if that is all."""
    cfg = apply_overrides(BASE, overrides or {})
    tokenizer = tokenization.get("tokenizer", "t1")
    num_tokens = tokenization.get("num_tokens", 1000)
    folder.mkdir(parents=True)
    workdir.save_config(folder, cfg)
    workdir.save_json(folder / "tokenizer.json", {"sha256": tokenizer})
    lines = []
    for step in range(1, last + 1):
        loss = 4 - step / 20
        lines.append({"step": step, "split": "train", "loss": loss, "bits_per_byte": 2 * loss})
        if step % 10 == 0:
            loss = losses[step // 10 - 1]
            lines.append(
                {
                    "step": step,
                    "split": "validation",
                    "loss": loss,
                    "perplexity": None if loss is None else math.exp(loss),
                    "bits_per_byte": None if loss is None else 2 * loss,
                    "num_tokens": num_tokens,
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    speeds = [{"step": n, "tokens_per_s": 100.0 * n} for n in (10, 20, 30)]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in speeds))
    if last == cfg.train.num_steps:
        summary = {"step": last, "seconds": 12.34, "tokens_per_s": 5000.0}
        workdir.save_json(folder / "summary.json", summary)
    return folder


def compare(*folders, output="text", workdir=None, config=None, overrides=None):
    flags = types.SimpleNamespace(runs=[str(folder) for folder in folders], output=output)
    workdir = str(workdir) if workdir else None
    return jobs.run("compare", jobs.Launch(config, overrides or {}, workdir, "", flags))


def rows_of(capsys, *folders):
    assert compare(*folders, output="json") == 0
    return json.loads(capsys.readouterr().out)


def table_of(out):
    """The lines of the first table."""
    return out.split("\n\n")[0].splitlines()


def test_the_row_of_a_finished_run(tmp_path, capsys):
    (row,) = rows_of(capsys, write_run(tmp_path / "a"))
    assert row == {
        "run": "a",
        "step": 40,
        "num_steps": 40,
        "val_loss": 2.25,
        "best_val_loss": 2.0,
        "val_perplexity": math.exp(2.25),
        "val_bits_per_byte": 4.5,
        "num_params": NUM_PARAMS,
        "tokens_seen": 40 * TOKENS_A_STEP,
        "tokens_per_s": 5000.0,
        "seconds": 12.34,
        "val_num_tokens": 1000,
        "tokenizer": "t1",
        "corpus": None,
    }


def test_unfinished_runs_show_what_they_have(tmp_path, capsys):
    middle = write_run(tmp_path / "middle", last=25)
    early = write_run(tmp_path / "early", last=3)
    bare = tmp_path / "bare"
    bare.mkdir()
    workdir.save_config(bare, BASE)
    diverged = write_run(tmp_path / "diverged", last=20, losses=(3.0, None))
    # Made longer after it had finished: its summary is of an earlier step.
    longer = write_run(tmp_path / "longer")
    workdir.save_config(
        longer, dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, num_steps=80))
    )
    with open(longer / "metrics.jsonl", "a") as file:
        line = {"step": 41, "split": "train", "loss": 1.0, "bits_per_byte": 2.0}
        file.write(json.dumps(line) + "\n" + '{"step": 42, "spl')  # torn
    rows = {r["run"]: r for r in rows_of(capsys, middle, early, bare, diverged, longer)}
    assert (rows["middle"]["step"], rows["middle"]["val_loss"]) == (25, 2.5)
    assert (rows["middle"]["tokens_per_s"], rows["middle"]["seconds"]) == (2000.0, None)
    assert rows["middle"]["tokens_seen"] == 25 * TOKENS_A_STEP
    assert (rows["early"]["step"], rows["early"]["val_loss"]) == (3, None)
    assert (rows["bare"]["step"], rows["bare"]["num_params"]) == (0, NUM_PARAMS)
    assert rows["diverged"]["val_loss"] is None and rows["diverged"]["best_val_loss"] == 3.0
    assert (rows["longer"]["step"], rows["longer"]["seconds"]) == (41, None)

    assert compare(middle, bare, workdir=tmp_path / "out") == 0
    table = table_of(capsys.readouterr().out)
    assert table[1].split()[:3] == ["middle", "25/40", "2.5000"]
    assert table[2].split() == ["bare", "0/40", *"----", str(NUM_PARAMS), "0", "-", "-"]
    assert compare(bare, workdir=tmp_path / "out") == 0
    assert "<svg" not in (tmp_path / "out" / "compare.html").read_text()


def test_the_plain_table_is_aligned_and_the_differing_fields_follow(tmp_path, capsys):
    a = write_run(tmp_path / "a")
    b = write_run(
        tmp_path / "much-longer-name", {"optim.peak_lr": "0.02", "data.path": "my text.txt"}
    )
    assert compare(a, b) == 0
    out = capsys.readouterr().out
    table = table_of(out)
    assert len({len(line) for line in table}) == 1
    assert [line.split()[0] for line in table] == ["run", "a", "much-longer-name"]
    differing = out.split("Where the configs differ:\n\n")[1].splitlines()
    rate = str(BASE.optim.peak_lr)
    assert [line.split(maxsplit=2) for line in differing] == [
        ["field", "a", "much-longer-name"],
        ["data.path", "none", "my text.txt"],
        ["optim.peak_lr", rate, "0.02"],
    ]
    other = write_run(tmp_path / "other", {"model.kind": "gru"})
    compare(a, other)
    lines = capsys.readouterr().out.split("Where the configs differ:\n\n")[1].splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["model.causal"] == ["true", "-"] and shown["model.kind"] == ["transformer", "gru"]
    assert shown["model.window"] == ["none", "-"], "none is a value"
    same = write_run(tmp_path / "same")
    compare(a, same)
    assert "The configs are the same." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "marked", "reason"),
    [
        ({}, False, "Bits per byte is what compares across tokenizers."),
        ({"tokenizer": "t2", "num_tokens": 700}, True, "tokenizers differ. Bits per byte does."),
        ({"num_tokens": 700}, True, "validation texts differ (1,000, 700 tokens)"),
    ],
)
def test_losses_that_do_not_compare_are_marked(tmp_path, capsys, other, marked, reason):
    compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", **other))
    out = capsys.readouterr().out
    assert reason in out
    titles = table_of(out)[0]
    for title in ("validation loss", "best", "perplexity"):
        assert (f"{title}*" in titles) == marked
    assert "bits per byte*" not in titles


def test_the_page_holds_curves_and_tables_and_needs_no_other_file(tmp_path, capsys):
    folders = [write_run(tmp_path / f"<run {i}>", {"seed": str(i)}) for i in range(10)]
    assert compare(*folders, workdir=tmp_path / "new" / "out") == 0
    path = tmp_path / "new" / "out" / "compare.html"
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    assert page.count("<svg") == 2 and page.count("<table") == 2
    assert "&lt;run 3&gt;" in page and "<run" not in page
    for outside in ("<script", "<link", "<img", "src=", "@import"):
        assert outside not in page
    assert "4.5000" in page and "<td>seed</td>" in page
    assert "border-top-style: dashed" in page, "ten runs, eight colours"


def test_runs_of_one_name_are_told_apart(tmp_path, capsys):
    folders = [write_run(tmp_path / parent / "a") for parent in ("x", "y")]
    names = [row["run"] for row in rows_of(capsys, *folders)]
    assert names == [str(folder) for folder in folders]


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path):
    a, empty = write_run(tmp_path / "a"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(a)
    out = tmp_path / "out"
    without = write_run(tmp_path / "without", {"model.vocab_size": "none"})
    for message, folders, options in (
        ("--job=compare needs --runs", [], {}),
        ("--job=compare needs --runs", [" "], {}),
        ("empty: holds no run", [a, empty], {}),
        ("missing: holds no run", [a, tmp_path / "missing"], {}),
        ("link: given twice", [a, tmp_path / "link"], {}),
        ("model.vocab_size must be", [a, without], {}),
        ("--output=xml", [a], {"output": "xml"}),
        ("--config: --job=compare uses", [a], {"config": "x.py"}),
        ("--config.seed: --job=compare uses", [a], {"overrides": {"seed": "1"}}),
        ("--workdir=.*file", [a], {"workdir": tmp_path / "file"}),
    ):
        with pytest.raises(ConfigError, match=message) as refusal:
            compare(*folders, **{"workdir": out, **options})
        assert "\n" not in str(refusal.value)
    assert not out.exists()
