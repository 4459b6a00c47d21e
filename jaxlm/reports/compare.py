"""Runs side by side: a table on the terminal, and compare.html."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.core.config import as_typed
from jaxlm.reports import page
from jaxlm.reports.curves import LINE_COLOURS, Curve, chart, cropped_limits, smoothed
from jaxlm.reports.style import css_colour
from jaxlm.reports.tables import print_table

ABSENT = "-"
_UNCOMPARABLE = "*"  # marks a column whose numbers must not be held against each other
_NO_FIELD = object()  # of this kind of model: no value, and not none either
_TOKENIZERS = "the tokenizers differ"  # the one reason that bits per byte outlives
_LONGEST_SETTING = 48  # characters of a config value in the tables


class ComparedRun(NamedTuple):
    """What is shown of a run.

    row: plain values; all but "run" may be None. Shown are run, step, num_steps, val_loss,
      best_val_loss, val_perplexity, val_bits_per_byte, num_params, tokens_seen, tokens_per_s and
      seconds; tokenizer, corpus (fingerprints) and val_num_tokens tell what compares.
    config: every field by its path.
    train, validation: (tokens seen, bits per byte) of each, NaN where it was not finite.
    """

    row: dict[str, Any]
    config: dict[str, Any]
    train: tuple[list[float], list[float]]
    validation: tuple[list[float], list[float]]

    @property
    def name(self) -> str:
        return self.row["run"]


def show(runs: Sequence[ComparedRun], is_terminal: bool | None = None) -> None:
    """Prints the results, what compares among them, and the fields in which the configs differ.

    Args:
      is_terminal: tables with colour, or plain aligned columns; by default whether standard output
        is a terminal.
    """
    is_terminal = sys.stdout.isatty() if is_terminal is None else is_terminal
    print_table = _print_rich if is_terminal else _print_plain
    print_table(header(runs), [cells(run) for run in runs], best=best_run(runs))
    print(f"\n{caveat(runs)}")
    if len(runs) == 1:
        return
    fields = differences(runs)
    if not fields:
        print("\nThe configs are the same.")
        return
    print("\nWhere the configs differ:\n")
    print_table(["field", *(run.name for run in runs)], fields, left=True)


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The same as a self-contained HTML page, under curves by tokens seen."""
    names = ", ".join(run.name for run in runs)
    title = f"{len(runs)} runs compared" if len(runs) > 1 else names
    body = [f"<h1>{page.escape(title)}</h1>"]
    if len(runs) > 1:
        body.append(page.paragraph(names, "muted"))
    body.append(page.paragraph(caveat(runs), "notice" if not_comparable(runs) else "muted"))
    body += _curves(runs)
    body += ["<h2>Results</h2>", _table(header(runs), [cells(run) for run in runs])]
    if len(runs) > 1:
        body.append("<h2>Where the configs differ</h2>")
        fields = differences(runs)
        if fields:
            body.append(_table(["field", *(run.name for run in runs)], fields))
        else:
            body.append(page.paragraph("The configs are the same.", "muted"))
    return page.page(f"{names}: comparison", body)


def not_comparable(runs: Sequence[ComparedRun]) -> list[str]:
    """Why losses a token do not compare among these runs, a clause each; empty where they do."""
    reasons = []
    tokenizers, texts = _known(runs, "tokenizer"), _known(runs, "corpus")
    if len(tokenizers) > 1:
        reasons.append(_TOKENIZERS)
    if len(texts) > 1:
        reasons.append("the texts differ")
    counts = _known(runs, "val_num_tokens")
    if len(counts) > 1 and not reasons:
        sizes = ", ".join(f"{count:,}" for count in counts)
        reasons.append(f"the validation texts differ ({sizes} tokens)")
    return reasons


def caveat(runs: Sequence[ComparedRun]) -> str:
    """One line on which columns compare."""
    reasons = not_comparable(runs)
    if not reasons:
        return "Bits per byte is what compares across tokenizers."
    line = f"{_UNCOMPARABLE} does not compare: {' and '.join(reasons)}. "
    if reasons == [_TOKENIZERS]:
        return line + "Bits per byte does."
    return line + "Bits per byte compares across tokenizers, but only on one text."


def header(runs: Sequence[ComparedRun]) -> list[str]:
    mark = _UNCOMPARABLE if not_comparable(runs) else ""
    return [column.title + (mark if column.a_token else "") for column in _COLUMNS]


def cells(run: ComparedRun) -> list[str]:
    """The row of a run as text, a cell for each title of `header`."""
    return [column.show(run.row) for column in _COLUMNS]


def best_run(runs: Sequence[ComparedRun]) -> int | None:
    """The place of the run with the lowest bits per byte, where several have one on one text."""
    if set(not_comparable(runs)) - {_TOKENIZERS}:
        return None
    known = [i for i, run in enumerate(runs) if run.row["val_bits_per_byte"] is not None]
    if len(known) < 2:
        return None
    return min(known, key=lambda i: runs[i].row["val_bits_per_byte"])


def differences(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """[field, value of each run] for every field of which the runs have not all one value."""
    fields = dict.fromkeys(name for run in runs for name in run.config)
    rows = []
    for field in fields:
        values = [run.config.get(field, _NO_FIELD) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([field, *map(_setting, values)])
    return rows


class _Column(NamedTuple):
    title: str
    show: Callable[[dict[str, Any]], str]
    a_token: bool = False  # in units of a token: says nothing across tokenizers


def _number(field: str, form: Callable[[Any], str]) -> Callable[[dict[str, Any]], str]:
    return lambda row: ABSENT if row[field] is None else form(row[field])


def _steps(row: dict[str, Any]) -> str:
    done = f"{row['step']:,}"
    return done if row["step"] == row["num_steps"] else f"{done}/{row['num_steps']:,}"


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


_COLUMNS = (
    _Column("run", lambda row: row["run"]),
    _Column("step", _steps),
    _Column("validation loss", _number("val_loss", "{:.4f}".format), a_token=True),
    _Column("best", _number("best_val_loss", "{:.4f}".format), a_token=True),
    _Column("perplexity", _number("val_perplexity", "{:.3f}".format), a_token=True),
    _Column("bits per byte", _number("val_bits_per_byte", "{:.4f}".format)),
    _Column("weights trained", _number("num_params", _short)),
    _Column("tokens seen", _number("tokens_seen", _short)),
    _Column("tokens/s", _number("tokens_per_s", _short)),
    _Column("seconds", _number("seconds", "{:,.1f}".format)),
)


def _known(runs: Sequence[ComparedRun], field: str) -> list[Any]:
    """The different values of a field, without None, in order."""
    return list(dict.fromkeys(run.row[field] for run in runs if run.row[field] is not None))


def _setting(value: Any) -> str:
    """A config value as it is given on the command line; a long one is cut."""
    if value is _NO_FIELD:
        return ABSENT
    text = "(none)" if value == () else repr(as_typed(value))[1:-1]
    return text if len(text) <= _LONGEST_SETTING else f"{text[: _LONGEST_SETTING - 3]}..."


def _print_plain(
    titles: list[str], rows: list[list[str]], left: bool = False, best: int | None = None
) -> None:
    print_table([titles, *rows], left)


def _print_rich(
    titles: list[str], rows: list[list[str]], left: bool = False, best: int | None = None
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not left:
        columns = zip(titles, *rows, strict=True)
        widths = [max(map(len, [*title.split(), *column])) for title, *column in columns]
        fits = sum(widths) + 2 * len(widths) <= console.width
        titles = [title.replace(" ", "\n") for title in titles] if fits else titles
    lines = [[Text(title) for title in titles]]
    lines += [[Text(c, "bold" if i == best else "") for c in row] for i, row in enumerate(rows)]
    if not left and not fits:
        lines = list(zip(*lines, strict=True))  # a column for each run
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(lines[0]):
        table.add_column(title, justify="left" if left or i == 0 else "right", overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    return page.card("", f'<div class="scroll">{page.columns(titles, rows)}</div>')


def _curves(runs: Sequence[ComparedRun]) -> list[str]:
    styles = []
    for i in range(len(runs)):
        again, place = divmod(i, len(LINE_COLOURS))
        styles.append({"colour": LINE_COLOURS[place], "dashed": bool(again % 2)})
    figures = []
    for name, title, points in (
        ("validation", "Validation loss", True),
        ("training", "Training loss, running average", False),
    ):
        curves = []
        for run, style in zip(runs, styles, strict=True):
            x, y = run.validation if points else run.train
            y = np.asarray(y, float) if points else smoothed(y)
            if np.isfinite(y).any():
                curves.append(Curve(run.name, x, y, points=points, **style))
        if curves:
            figures.append(_figure(curves, title, name))
    if not figures:
        return [page.paragraph("No run has a loss to plot yet.", "muted")]
    keys = [
        (run.name, css_colour(style["colour"]), style["dashed"])
        for run, style in zip(runs, styles, strict=True)
    ]
    return [
        "<h2>Curves</h2>",
        page.legend(keys),
        *(f'<div class="charts">{figure}</div>' for figure in figures),
    ]


def _figure(curves: list[Curve], title: str, name: str) -> str:
    svg = chart(
        curves,
        title=title,
        y_label="bits per byte",
        x_label="tokens seen",
        name=name,
        crop_start=True,
        legend=False,
    )
    caption, highest = "", max(np.nanmax(curve.y) for curve in curves)
    if highest > cropped_limits(curves)[1]:
        caption = f"The axis leaves out the start, where the loss is up to {highest:.3g}."
        caption = f"<figcaption>{page.escape(caption)}</figcaption>"
    return f'<figure class="wide">{svg}{caption}</figure>'
