"""The tables of compared runs on a terminal, wide and narrow, and what they say of comparing."""

import pytest

from jaxlm.reports import compare
from jaxlm.reports.compare import ComparedRun

ROW = {
    "step": 40, "num_steps": 40, "val_loss": 1.5, "best_val_loss": 1.25, "val_perplexity": 4.4817,
    "val_bits_per_byte": 2.25, "num_params": 804_224, "tokens_seen": 1_600, "tokens_per_s": 512.0,
    "seconds": 1234.56, "val_num_tokens": 99, "tokenizer": "t", "corpus": "c",
}  # fmt: skip
CELLS = ["40", "1.5000", "1.2500", "4.482", "2.2500", "804.2k", "1.6k", "512", "1,234.6"]


def make_run(name, config=None, **row):
    curve = ([80.0, 1600.0], [3.0, 2.25])
    return ComparedRun({**ROW, "run": name, **row}, {"seed": 0, **(config or {})}, curve, curve)


@pytest.mark.parametrize("width", [200, 60])
def test_the_terminal_shows_every_cell_whole_at_any_width(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    runs = [make_run("long-name-001"), make_run("[bold]b", {"seed": 1}, val_bits_per_byte=None)]
    compare.show(runs, is_terminal=True)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:12])) <= width
    words = out.split()
    for text in ("long-name-001", "[bold]b", "perplexity", "-", *CELLS):
        assert text in words, text
    lines = [line.split() for line in out.splitlines()]
    if width == 200:
        assert ["long-name-001", *CELLS] in lines
    else:
        assert ["seconds", "1,234.6", "1,234.6"] in lines
    assert ["seed", "0", "1"] in lines


def test_the_lowest_bits_per_byte_is_the_best():
    values = (None, 2.0, 1.5, 1.75)
    runs = [make_run("r", val_bits_per_byte=value) for value in values]
    assert compare.best_run(runs) == 2
    assert compare.best_run(runs[:2]) is None


@pytest.mark.parametrize(
    "other, best",
    [({"tokenizer": "u"}, 1), ({"corpus": "d"}, None), ({"val_num_tokens": 50}, None)],
)
def test_none_is_the_best_of_runs_on_different_texts(other, best):
    runs = [make_run("a"), make_run("b", val_bits_per_byte=2.0, **other)]
    assert compare.best_run(runs) == best


def test_why_losses_do_not_compare():
    a = make_run("a")
    unknown = make_run("b", tokenizer=None, corpus=None, val_num_tokens=None)
    assert compare.not_comparable([a, unknown]) == []
    other = {"tokenizer": make_run("b", tokenizer="u", val_num_tokens=50)}
    assert compare.not_comparable([a, other["tokenizer"]]) == ["the tokenizers differ"]
    # Different texts, though the same number of tokens of them is validated.
    assert compare.not_comparable([a, make_run("b", corpus="d")]) == ["the texts differ"]
    both = [a, make_run("b", corpus="d", tokenizer="u")]
    assert compare.caveat(both) == (
        "* does not compare: the tokenizers differ and the texts differ. "
        "Bits per byte compares across tokenizers, but only on one text."
    )


def test_differing_fields_are_written_as_on_the_command_line():
    first = {"a.on": True, "a.items": (0.5, 1.0), "a.text": "x\ny", "a.same": 3}
    second = {"a.on": None, "a.items": (), "a.text": "z" * 80, "a.same": 3}
    rows = compare.differences([make_run("1", first), make_run("2", second)])
    assert rows == [
        ["a.on", "true", "none"],
        ["a.items", "0.5,1.0", "(none)"],
        ["a.text", "x\\ny", "z" * 45 + "..."],
    ]


def test_a_short_run_beside_a_long_one_stays_in_sight():
    short = make_run("short")._replace(validation=([1.0, 2.0], [9.0, 8.0]))
    long = make_run("long")._replace(validation=([100.0, 1000.0], [2.0, 1.0]))
    figure = compare.comparison_page([short, long]).split("Validation loss")[1].split("</svg>")[0]
    assert ">8<" in figure and ">9<" in figure  # on the axis
    assert "leaves out" not in figure
