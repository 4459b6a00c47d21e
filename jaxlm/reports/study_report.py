"""report.html of a study: its question, what became of its claims, figures and numbers.

And an index of several studies.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict
from urllib.parse import quote

from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, Claim
from jaxlm.reports import page, sections
from jaxlm.reports.figures import Figure
from jaxlm.reports.files import write_atomic

REPORT = "report.html"
INDEX = "index.html"
# Two-sided 95%: see `jaxlm.analysis.claims`.
JUDGED_ALONE = (
    "Each is judged by its own 95% interval, however many there are: of 40 false ones about one "
    "may be called supported by chance."
)
FIGURES = "figures"
_MOST_TIMINGS = 100  # rows of a table of timings

# Of each verdict its style and mark: read without colours, too.
_VERDICTS = {
    SUPPORTED: ("yes", "✓"),
    NOT_SUPPORTED: ("no", "✗"),
    INCONCLUSIVE: ("open", "?"),
}
_NUMBER = re.compile(r"[-+±<>~]?\.?\d")


class Table(NamedTuple):
    """rows: of text or numbers, as long as the header; a float is shown with four digits."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class StudyReport(NamedTuple):
    """What a report shows.

    question: what the study asks, in a sentence.
    figures, tables: in the order of the page.
    config, provenance: plain values by name, nested.
    timings: records of plain values; those of the same fields make one table.
    notes: a paragraph each, on what the numbers do not say.
    """

    name: str
    question: str
    claims: Sequence[Claim]
    figures: Sequence[Figure]
    tables: Sequence[Table] = ()
    config: Mapping[str, Any] = {}
    timings: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = {}
    notes: Sequence[str] = ()


class IndexEntry(TypedDict):
    """A study on an index page; folder: of its report, from that of the index."""

    name: str
    question: str
    claims: Sequence[Claim]
    figures: Sequence[Figure]
    folder: str


def write_study_report(folder: str | os.PathLike, study: StudyReport) -> pathlib.Path:
    """Writes `<folder>/report.html`, which needs no other file, and `<folder>/figures/`.

    The figures are there once more as `<name>.svg` and `<name>.png`, dark on white.

    Returns:
      The path of the page.

    Raises:
      ConfigError: a file could not be written.
      ValueError: two figures of one name, a verdict that is none, or a table whose rows do not
        fit its header.
    """
    folder = pathlib.Path(folder)
    names = [figure.name for figure in study.figures]
    if len(set(names)) < len(names):
        raise ValueError(f"figures of the same name: {', '.join(sorted(names))}")
    body = [
        page.paragraph(study.name, "muted"),
        f"<h1>{page.escape(study.question)}</h1>",
        *([page.paragraph(_counted(study.claims), "muted")] if study.claims else []),
        *_claims(study.claims),
        *_figures(study.figures),
        *map(_table_section, study.tables),
        *_notes(study.notes),
        *_settings("Config", study.config, sections.config),
        *_timings(study.timings),
        *_settings("Environment", study.provenance, sections.environment),
    ]
    text = page.page(f"{study.name}: study report", body)
    for figure in study.figures:
        figure.write(folder / FIGURES)
    write_atomic(folder / REPORT, text)
    return folder / REPORT


def write_index(folder: str | os.PathLike, entries: Sequence[IndexEntry]) -> pathlib.Path:
    """Writes `<folder>/index.html`: of each study its question, claims and a figure: the
    first of half a page's width, which is hardly shrunk here, or else the first.

    The page holds all it shows; it links to `<entry folder>/report.html`.
    """
    cards = []
    for place, entry in enumerate(entries):
        link = page.escape(f"{quote(pathlib.PurePath(entry['folder']).as_posix())}/{REPORT}")
        picture = ""
        if entry["figures"]:
            figures = sorted(entry["figures"], key=lambda figure: figure.wide)
            svg = figures[0].svg(prefix=f"study-{place}-")
            picture = f'<a class="thumbnail" href="{link}" tabindex="-1">{svg}</a>'
        text = (
            page.paragraph(entry["name"], "muted")
            + f'<h2><a href="{link}">{page.escape(entry["question"])}</a></h2>'
            + f'<p class="verdicts">{_verdict_counts(entry["claims"])}</p>'
            + _claim_list(entry["claims"])
        )
        cards.append(f'<div class="card study"><div>{text}</div>{picture}</div>')
    claims = [claim for entry in entries for claim in entry["claims"]]
    count = _number_of(len(entries), "study", "studies")
    body = [f"<h1>{count}</h1>", page.paragraph(_counted(claims), "muted"), *cards]
    path = pathlib.Path(folder) / INDEX
    write_atomic(path, page.page(count, body))
    return path


def _counted(claims: Sequence[Claim]) -> str:
    """ "3 claims: 2 supported, 1 inconclusive", and how often several of them err."""
    counts = _counts(claims)
    listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    counted = _number_of(len(claims), "claim", "claims") + (f": {listed}" if listed else "")
    return f"{counted}. {JUDGED_ALONE}" if len(claims) > 1 else counted


def _counts(claims: Sequence[Claim]) -> dict[str, int]:
    for claim in claims:
        if claim.verdict not in _VERDICTS:
            expected = ", ".join(map(repr, _VERDICTS))
            raise ValueError(
                f"claim {claim.text!r}: verdict {claim.verdict!r} is none of {expected}"
            )
    return {verdict: sum(c.verdict == verdict for c in claims) for verdict in _VERDICTS}


def _number_of(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _verdict_counts(claims: Sequence[Claim]) -> str:
    parts = []
    for verdict, count in _counts(claims).items():
        if count:
            style, mark = _VERDICTS[verdict]
            text = page.escape(f"{mark} {count} {verdict}")
            parts.append(f'<span class="verdict {style}">{text}</span>')
    return " ".join(parts) or '<span class="muted">no claims</span>'


def _claim_list(claims: Sequence[Claim]) -> str:
    """The claims without their evidence, folded."""
    items = []
    for claim in claims:
        style, mark = _VERDICTS[claim.verdict]
        text = page.escape(claim.text)
        items.append(f'<li><span class="verdict {style}">{mark}</span> {text}</li>')
    return page.folded("The claims", f"<ul>{''.join(items)}</ul>") if items else ""


def _claims(claims: Sequence[Claim]) -> list[str]:
    cards = []
    for claim in claims:
        style, mark = _VERDICTS[claim.verdict]
        cards.append(
            f'<div class="card claim {style}">'
            f'<span class="verdict {style}">{page.escape(f"{mark} {claim.verdict}")}</span>'
            f"<h3>{page.escape(claim.text)}</h3>{page.paragraph(claim.evidence, 'muted')}</div>"
        )
    return [f'<div class="claims">{"".join(cards)}</div>'] if cards else []


def _figures(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return []
    parts, column = [], 0  # of two, in which a figure of half the width would come
    for place, figure in enumerate(figures):
        style = "wide" if figure.wide else ""
        after = figures[place + 1] if place + 1 < len(figures) else None
        if not figure.wide and column == 0 and (after is None or after.wide):
            style = "alone"
        column = 1 if not style and column == 0 else 0
        caption = f"<figcaption>{page.escape(figure.caption)}</figcaption>"
        parts.append(f'<figure class="{style}">{figure.svg()}{caption}</figure>')
    return ["<h2>Figures</h2>", f'<div class="charts">{"".join(parts)}</div>']


def _table_section(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(f"table {table.title!r}: {len(row)} cells, {len(table.header)} titles")
    return f"<h2>{page.escape(table.title)}</h2>{_table(table.header, table.rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of numbers to the right, of words to the left."""
    texts = [[_cell(value) for value in row] for row in rows]
    left = [not all(_NUMBER.match(t) or t in ("", "NaN") for t in col) for col in _columns(texts)]
    left = left or [True] * len(header)

    def line(tag: str, cells: Iterable[str]) -> str:
        styles = (' class="left"' if is_left else "" for is_left in left)
        pairs = zip(cells, styles, strict=True)
        inner = "".join(f"<{tag}{style}>{page.escape(cell)}</{tag}>" for cell, style in pairs)
        return f"<tr>{inner}</tr>"

    content = line("th", header) + "".join(line("td", row) for row in texts)
    table = f'<div class="scroll"><table class="columns mixed">{content}</table></div>'
    return page.card("", table)


def _columns(rows: list[list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _notes(notes: Sequence[str]) -> list[str]:
    return ["<h2>Notes</h2>", *map(page.paragraph, notes)] if notes else []


def _timings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record), []).append(record)
    tables = []
    for fields, group in groups.items():
        rows = [list(record.values()) for record in group]
        tables.append(_table([f.replace("_", " ") for f in fields], rows[:_MOST_TIMINGS]))
        if len(rows) > _MOST_TIMINGS:
            more = f"{len(rows) - _MOST_TIMINGS:,} more in timings.jsonl."
            tables.append(page.paragraph(more, "muted"))
    return ["<h2>Timings</h2>", page.folded(_summary(records), "".join(tables))]


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    """ "Seconds 12.3, compile seconds 4.5, programs 2 in all"."""
    totals = []
    for field in ("seconds", "compile_seconds", "programs"):
        values = [r[field] for r in records if isinstance(r.get(field), int | float)]
        if values:
            totals.append(f"{field.replace('_', ' ')} {_cell(sum(values))}")
    if not totals:
        return _number_of(len(records), "record", "records")
    return f"{', '.join(totals)} in all".capitalize()


def _settings(title: str, values: Mapping[str, Any], show: Any) -> list[str]:
    if not values:
        return []
    return [f"<h2>{title}</h2>", page.folded(f"Show the {title.lower()}", show(dict(values)))]
