"""report.html: everything in it, nothing from elsewhere, and no run too broken to report."""

import json
import math
import re

import pytest
from html_reader import Reader

from jaxlm.reports import run_report
from jaxlm.reports.run_report import write_run_report

SECTIONS = ["Curves", "Samples", "Config", "Learning-rate schedule", "Timings", "Environment"]


def write_run(folder, steps=100, planned=100):
    """The files of a run as the train job writes them."""
    folder.mkdir(exist_ok=True)
    config = {
        "seed": 7,
        "model": {"num_layers": 4, "dtype": "float32", "tied_head": False},
        "train": {"num_steps": planned, "init_from": None, "sample_temperatures": [0.5, 0.8]},
        "data": {"path": "<script>alert(1)</script>.txt"},
    }
    (folder / "config.json").write_text(json.dumps({"format_version": 1, "config": config}))
    metrics = []
    for step in range(1, steps + 1):
        loss = 2 + 3 / step
        bits = loss / math.log(2)
        metrics.append({"step": step, "split": "train", "loss": loss, "bits_per_byte": bits})
        metrics[-1] |= {"grad_norm": 50 / step, "update_norm": 0.1, "learning_rate": 1e-3}
        if step % 25 == 0:
            loss += 0.1
            metrics.append({"step": step, "split": "validation", "loss": loss})
            metrics[-1] |= {"perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2)}
    lines(folder / "metrics.jsonl", metrics)
    timings = [{"event": "start", "step": 0}, {"event": "start", "step": 50}]
    timings.append(
        {"event": "compile", "step": 1, "seconds": 5.25, "programs": 12, "from_cache": 2}
    )
    timings += [
        {"step": s, "seconds_per_step": 0.015, "tokens_per_s": 270_000.0}
        for s in range(10, steps + 1, 10)
    ]
    lines(folder / "timings.jsonl", timings)
    samples = [
        {"step": s, "temperature": 0.8, "prompt": "A&B:", "text": f"A&B: <i>text {s}</i>\n  in 2"}
        for s in (50, 100)
    ]
    lines(folder / "samples.jsonl", samples)
    (folder / "schedule.json").write_text(json.dumps([[s, s * 1e-5] for s in range(200)]))
    provenance = {"commit": "abc123", "dirty": True, "command": ["launch.py", "--name=a b"]}
    provenance |= {"device_kind": "cpu", "device_count": 2, "packages": {"jax": "0.10.2"}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    if steps == planned:
        summary = {"step": steps, "val_loss": 2.1234567, "val_perplexity": 8.36, "seconds": 125.0}
        summary |= {"val_bits_per_byte": 3.06, "num_params": 812_345, "tokens_seen": 8_192_000}
        summary |= {"flops_per_s": 2.5e11, "mfu": 0.125, "peak_memory_bytes": 5.12e8}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def report(folder) -> tuple[Reader, str]:
    text = write_run_report(folder).read_text()
    return Reader(text), text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return report(write_run(tmp_path_factory.mktemp("runs") / "char-004"))


@pytest.fixture
def no_charts(monkeypatch):
    """Charts are slow to draw, and of no matter to some tests."""
    monkeypatch.setattr(run_report, "chart", lambda curves, **_: "<svg></svg>")


def test_every_section_and_the_headline_are_there(whole):
    page, _ = whole
    assert page.headings == SECTIONS
    for words in (
        "char-004",
        "100 steps on 2 x cpu",
        "validation loss 2.1235",
        "perplexity 8.360",
        "bits per byte 3.0600",
        "parameters 812.3 k",
        "tokens seen 8.192 M",
        "time 2 min 5 s",
        "num_layers 4",
        "sample_temperatures 0.5, 0.8",
        "init_from none",
        "tied_head no",
        "16 of the 200 rows",
        "time per step, median 15 ms",
        "compute 250 GFLOP/s",
        "memory, peak 512 MB",
        "MFU, full attention 12.5%",
        "compiling 5.25 s",
        "2 of 12",
        "resumed at step 50",
        "launch.py '--name=a b'",
        "commit abc123",
        "jax 0.10.2",
    ):
        assert words in page.text, words
    assert "not finished" not in page.text and "Left out" not in page.text


def test_charts(whole):
    page, _ = whole
    charts = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert charts == ["Loss", "Learning rate", "Gradient norm", "Update norm", "Speed"]
    assert len(page.ids) == len(set(page.ids))


def test_all_text_is_escaped(whole):
    page, text = whole
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "<i>" not in text and "<i>text 100</i>" in page.text
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "i" not in tags


def test_the_prompt_is_shown_once_and_line_breaks_are_kept(whole):
    page, text = whole
    assert page.text.count("A&B:") == 2
    assert "<b>A&amp;B:</b> &lt;i&gt;text 100&lt;/i&gt;\n  in 2</pre>" in text
    assert text.index("text 100") < text.index("text 50")


def test_the_page_needs_no_other_file(whole):
    page, text = whole
    assert not {"link", "script", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)|src=", text)
    for _, attrs in page.tags:
        for name in ("href", "xlink:href"):
            assert attrs.get(name, "#").startswith("#")


def test_a_report_is_a_function_of_the_folder(tmp_path):
    run = write_run(tmp_path / "a")
    assert write_run_report(run).read_bytes() == write_run_report(run).read_bytes()
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_a_stopped_run_says_so(tmp_path, no_charts):
    page, _ = report(write_run(tmp_path / "a", steps=60, planned=1000))
    assert "has reached step 60 of 1,000" in page.text
    assert "validation loss 2.1600" in page.text  # 2 + 3/50 + 0.1, of its last validation
    assert page.headings == SECTIONS


def test_a_summary_of_a_run_made_longer_is_out_of_date(tmp_path, no_charts):
    run = write_run(tmp_path / "a", steps=100, planned=1000)
    (run / "summary.json").write_text(json.dumps({"step": 50, "val_loss": 9.0, "num_params": 5000}))
    page, _ = report(run)
    assert "validation loss 2.1300" in page.text and "parameters 5 k" in page.text


def test_the_lowest_loss_is_named_when_it_is_not_the_last(tmp_path, no_charts):
    run = write_run(tmp_path / "a")
    (run / "summary.json").write_text(json.dumps({"step": 100, "val_loss": 2.5}))
    assert "2.5000 nats a token; lowest 2.1300 at step 100" in report(run)[0].text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.json", "There is no config.json."),
        ("schedule.json", "There is no schedule.json."),
        ("provenance.json", "There is no provenance.json."),
        ("samples.jsonl", "No samples were taken."),
        ("metrics.jsonl", "100 steps"),
        ("summary.json", "validation loss 2.1300"),
        ("timings.jsonl", "compute 250 GFLOP/s"),
    ],
)
def test_a_missing_or_broken_file_is_said_and_the_rest_is_there(tmp_path, no_charts, name, says):
    run = write_run(tmp_path / "a")
    (run / name).unlink()
    page, _ = report(run)
    assert page.headings == SECTIONS and says in page.text, page.text
    assert "Left out" not in page.text
    (run / name).write_bytes(b'{"step": 1, \xff\0')
    page, _ = report(run)
    assert page.headings == SECTIONS and says in page.text
    problem = "1 unreadable line" if name.endswith("jsonl") else "cannot be read"
    assert "Left out: " + name in page.text and problem in page.text


def test_what_earlier_starts_had_otherwise_is_shown(tmp_path, no_charts):
    run = write_run(tmp_path / "a")
    now = json.loads((run / "provenance.json").read_text())
    before = now | {"commit": "0ld", "packages": {"jax": "0.9"}, "command": ["launch.py", "--a b"]}
    (run / "provenance.json").write_text(json.dumps(now | {"earlier": [before]}))
    text = report(run)[0].text
    assert "start 1, what was other commit 0ld" in text and "packages.jax 0.9" in text, text
    assert text.count("device kind") == 1  # which both had


def test_a_config_whose_train_is_null_is_one_without(tmp_path, no_charts):
    (tmp_path / "config.json").write_text('{"config": {"train": null}}')
    assert "Step 0" in write_run_report(tmp_path).read_text()


def test_an_empty_folder(tmp_path, no_charts):
    page, _ = report(tmp_path)
    assert page.headings == SECTIONS
    assert "No result has been recorded yet." in page.text
    assert "metrics.jsonl holds nothing to plot." in page.text


@pytest.mark.filterwarnings("error")
def test_values_that_were_not_finite_leave_gaps(tmp_path):
    run = write_run(tmp_path / "a")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records[40:]:
        record |= dict.fromkeys(("loss", "grad_norm", "perplexity", "bits_per_byte"))
    lines(run / "metrics.jsonl", records)
    (run / "summary.json").unlink()
    page, _ = report(run)
    charts = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert charts[0] == "Loss" and "nan" not in page.text.lower()
    for record in records:
        record |= dict.fromkeys(("loss", "grad_norm"))
    lines(run / "metrics.jsonl", records)
    page, _ = report(run)
    charts = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert charts == ["Learning rate", "Update norm", "Speed"]


def test_a_loss_that_no_step_gives_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", steps=2)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "split": "train", "loss": 1e+308}\n')
    write_run_report(folder)
    assert "metrics.jsonl: 1 unreadable line" in (folder / "report.html").read_text()
