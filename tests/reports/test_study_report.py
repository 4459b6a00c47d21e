"""report.html of a study and index.html: what they say, that it is escaped, and needs nothing."""

import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from html_reader import Reader

from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import mean_interval
from jaxlm.core.config import ConfigError
from jaxlm.reports import figures, study_report
from jaxlm.reports.figures import Band
from jaxlm.reports.study_report import StudyReport, Table, write_index, write_study_report

ROOT = pathlib.Path(__file__).parents[2]
NASTY = '<script>alert("1")</script> & co'


def figure(name, wide=False):
    words = {"title": f"Title of {name}", "caption": f"Caption of {name} {NASTY}"}
    series = [Band(NASTY, [1, 2], [1, 2])]
    return figures.lines(series, name=name, **words, x_label="x", y_label="y", wide=wide)


def claims():
    accuracy = mean_interval([0.99, 0.98, 1.0, 0.99, 0.99])
    return [
        weigh(f"Copies at least nine in ten {NASTY}", accuracy, above=0.9),
        weigh("Copies all of them, which is wrong", accuracy, above=0.9999),
        Claim("Heads matter", "inconclusive", "0.1 [-0.2, 0.4]"),
        Claim("Depth matters", "supported", "0.3 [0.2, 0.4]"),
    ]


def study(**changes):
    report = StudyReport(
        name="copy_task",
        question=f"Can one block copy? {NASTY}",
        claims=claims(),
        figures=[figure("one"), figure("two", wide=True), figure("three"), figure("four")],
        tables=[
            Table(
                f"Accuracy {NASTY}",
                ["positions", "seeds", "accuracy", "interval"],
                [
                    [NASTY, 5, 0.98765, "0.98 to 1.0"],
                    ["none", 12000, math.nan, None],
                    ["rope", 5, 1234567.0, "1e-7 to 2"],
                ],
            )
        ],
        config={"scale": "small", "model": {"d_model": 32, "name": NASTY, "tied": False}},
        timings=[
            {"cell": 0, "seconds": 1.5, "compile_seconds": 0.5, "programs": 1},
            {"cell": 1, "seconds": 2.0, "compile_seconds": 0.0, "programs": 0},
            {"what": NASTY, "ratio": 11.0},
        ],
        provenance={"commit": "abc123", "command": ["launch.py", NASTY], "packages": {"jax": "1"}},
        notes=[f"Depth is not varied {NASTY}."],
    )
    return report._replace(**changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "copy"
    path = write_study_report(folder, study())
    return folder, Reader(path.read_text()), path.read_text()


def test_the_page_has_everything_in_its_order(written):
    _, page, _ = written
    want = [
        "copy_task",
        f"Can one block copy? {NASTY}",
        "4 claims: 2 supported, 1 not supported, 1 inconclusive. Each is judged by its own 95%",
        "✓ supported",
        f"Copies at least nine in ten {NASTY}",
        "over 5 seeds; claimed above 0.9",
        "✗ not supported",
        "Copies all of them, which is wrong",
        "? inconclusive",
        "Heads matter",
        "0.1 [-0.2, 0.4]",
        "Depth matters",
        "Title of one",
        f"Caption of one {NASTY}",
        "Title of two",
        "Title of three",
        "Title of four",
        f"Accuracy {NASTY}",
        "positions seeds accuracy interval",
        f"{NASTY} 5 0.9877 0.98 to 1.0",
        "none 12,000 NaN",
        "rope 5 1,234,567 1e-7 to 2",
        "Notes",
        f"Depth is not varied {NASTY}.",
        "scale small",
        "d_model 32",
        f"name {NASTY}",
        "tied no",
        "Seconds 3.5, compile seconds 0.5, programs 1 in all",
        "cell seconds compile seconds programs",
        "0 1.5 0.5 1",
        f"{NASTY} 11",
        "launch.py",
        "commit abc123",
        "jax 1",
    ]
    place = 0
    for words in want:
        found = page.text.find(words, place)
        assert found >= 0, (words, page.text[place : place + 300])
        place = found + len(words)
    headings = ["Figures", f"Accuracy {NASTY}", "Notes", "Config", "Timings", "Environment"]
    assert "".join(page.headings) == "".join(headings)


def test_a_claim_that_the_numbers_contradict_is_called_so(written):
    _, _, text = written
    cards = re.findall(r'<div class="card claim (\w+)">(.*?)</div>', text, flags=re.DOTALL)
    assert [style for style, _ in cards] == ["yes", "no", "open", "yes"]
    wrong = cards[1][1]
    assert "which is wrong" in wrong and "✗ not supported" in wrong
    assert "0.990 [0.981, 0.999]" in wrong and "claimed above 0.9999" in wrong


def test_everything_is_escaped_and_the_page_needs_no_other_file(written):
    _, page, text = written
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "image"}
    assert "<script" not in text and not re.search(r"@import|url\((?!#)|src=", text)
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert page.ids and len(page.ids) == len(set(page.ids))


def test_narrow_figures_stand_in_pairs_and_one_without_a_partner_alone(written):
    _, page, _ = written
    styles = [attributes.get("class") for tag, attributes in page.tags if tag == "figure"]
    assert styles == ["alone", "wide", "", ""]


def test_columns_of_words_are_to_the_left_and_of_numbers_to_the_right(written):
    _, page, _ = written
    titles = [attributes.get("class") for tag, attributes in page.tags if tag == "th"][:4]
    assert titles == ["left", None, None, None]


def test_figures_are_files_too_and_writing_again_changes_nothing(written):
    folder, _, text = written
    names = {p.name for p in (folder / "figures").iterdir()}
    assert names == {f"{n}.{k}" for n in ("one", "two", "three", "four") for k in ("svg", "png")}
    assert {p.name for p in folder.iterdir()} == {"figures", "report.html"}
    assert write_study_report(folder, study()).read_text() == text


def test_a_report_without_anything_but_a_question(tmp_path):
    path = write_study_report(tmp_path, StudyReport("bare", "Why?", [], []))
    page = Reader(path.read_text())
    assert page.text == "bare: study report bare Why?" and page.headings == []


def test_what_cannot_be_reported_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="figures of the same name: one, one"):
        write_study_report(tmp_path, study(figures=[figure("one"), figure("one")]))
    with pytest.raises(ValueError, match="claim 'It holds': verdict 'yes' is none of 'supported'"):
        write_study_report(tmp_path, study(claims=[Claim("It holds", "yes", "")]))
    with pytest.raises(ValueError, match="table 'T': 1 cells, 2 titles"):
        write_study_report(tmp_path, study(figures=[], tables=[Table("T", ["a", "b"], [[1]])]))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    small = study(figures=[])
    path = write_study_report(tmp_path, small)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match=r"report\.html: cannot be written: No space left"):
        write_study_report(tmp_path, small._replace(question="Another?"))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_long_timings_are_cut_and_counted(tmp_path):
    timings = [{"cell": i, "seconds": 0.25} for i in range(130)]
    path = write_study_report(tmp_path, study(figures=[], timings=timings))
    text = Reader(path.read_text()).text
    assert "Seconds 32.5 in all" in text and "99 0.25 30 more in timings.jsonl." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (np.float64(12345.6), "12,346"),
        (1e20, "1e+20"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
        (True, "yes"),
        (None, ""),
        ("a b", "a b"),
    ],
)
def test_cells_of_tables(value, text):
    assert study_report._cell(value) == text


def test_the_index_leads_to_each_report_and_shows_a_figure_that_needs_no_shrinking(tmp_path):
    entries = [
        {"name": s, "question": f"Question of {s} {NASTY}", "claims": c, "figures": f, "folder": d}
        for s, c, f, d in (
            ("copy_task", claims(), [figure("same"), figure("unseen")], "copy_task"),
            ("warmup", claims()[:1], [figure("unseen", True), figure("same")], 'a b"c'),
            ("bare", [], [], "bare"),
        )
    ]
    path = write_index(tmp_path, entries)
    page, text = Reader(path.read_text()), path.read_text()
    assert path == tmp_path / "index.html" and list(tmp_path.iterdir()) == [path]
    assert page.text.startswith(
        "3 studies 3 studies 5 claims: 3 supported, 1 not supported, 1 inconclusive. "
        f"{study_report.JUDGED_ALONE} copy_task "
        f"Question of copy_task {NASTY} ✓ 2 supported ✗ 1 not supported ? 1 inconclusive "
        f"The claims ✓ Copies at least nine in ten {NASTY} ✗ Copies all of them, which is wrong "
    )
    assert "no claims" in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    first, second = "copy_task/report.html", "a%20b%22c/report.html"
    assert links == [first, first, second, second, "bare/report.html"]
    assert [a["aria-label"] for tag, a in page.tags if tag == "svg"] == ["Title of same"] * 2
    assert len(page.ids) == len(set(page.ids)) > 0
    assert "<script" not in text and "<img" not in text


def test_reports_are_written_where_jax_cannot_be_imported(tmp_path):
    code = f"""
import sys
sys.modules["jax"] = None
from jaxlm.reports.figures import Band, lines
from jaxlm.reports.study_report import StudyReport, write_index, write_study_report
from jaxlm.analysis.claims import Claim
words = dict(name="n", title="t", caption="c", x_label="x", y_label="y")
figures = [lines([Band("a", [1, 2], [1, 2])], **words)]
claims = [Claim("It holds", "supported", "1 [1, 1]")]
write_study_report({str(tmp_path)!r}, StudyReport("s", "Why?", claims, figures))
entry = dict(name="s", question="Why?", claims=claims, figures=figures, folder=".")
write_index({str(tmp_path)!r}, [entry])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", "index.html", "figures"}
