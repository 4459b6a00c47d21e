"""Pieces of a self-contained HTML page. Every function takes plain text and escapes it."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from jaxlm.reports.style import DARK, LIGHT


def _variables(colours: dict[str, str]) -> str:
    return "; ".join(f"--{name}: {colour}" for name, colour in colours.items())


_STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)}; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)}; }} }}
"""
_STYLE += """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 14px; margin: 0 0 6px; }
p { margin: 0 0 12px; }
.muted { color: var(--muted); }
.notice { background: var(--notice); padding: 10px 14px; border-radius: 8px; margin: 16px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: 12px;
  margin: 24px 0; }
.tile, .card { background: var(--card); border-radius: 10px; padding: 14px 15px; }
.tile .value { font-size: 21px; font-weight: 650; line-height: 1.3; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile .label, .tile .detail { color: var(--muted); font-size: 13px; }
.tile.main .value { color: var(--second); }
figure { margin: 0; }
figcaption { color: var(--muted); font-size: 13px; margin: 4px 0 0; }
.charts + .charts { margin-top: 20px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px 16px; }
.charts .wide { grid-column: 1 / -1; }
.charts .last-odd { grid-column: 1 / -1; max-width: 66%; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; font-size: 14px; }
.legend i { display: inline-block; width: 22px; border-top: 3px solid; margin-right: 7px;
  vertical-align: middle; }
.scroll { overflow-x: auto; }
.cards { columns: 3 280px; column-gap: 12px; }
.cards .card { break-inside: avoid; margin: 0 0 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
td, th { text-align: left; vertical-align: top; padding: 3px 12px 3px 0; }
td:last-child, th:last-child { padding-right: 0; }
th { color: var(--muted); font-weight: 500; }
.pairs th { white-space: nowrap; }
.pairs td { text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.card.plain { max-width: 720px; }
.columns td, .columns th { text-align: right; font-variant-numeric: tabular-nums; }
.columns td:first-child, .columns th:first-child { text-align: left; }
.columns tr + tr td { border-top: 1px solid var(--grid); }
pre { background: var(--card); border-radius: 10px; padding: 12px 16px; margin: 4px 0 14px;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26em; overflow: auto; }
pre b { color: var(--second); }
details { margin: 6px 0; }
summary { cursor: pointer; color: var(--muted); }
code { font-size: 13px; overflow-wrap: anywhere; }
.charts .alone { grid-column: 1 / -1; max-width: 50%; }
.claims { display: grid; gap: 10px; margin: 20px 0; }
.claim { border-left: 4px solid; }
.claim h3 { font-size: 16px; margin: 2px 0; }
.claim p { margin: 0; font-size: 13.5px; overflow-wrap: anywhere; }
.verdict { font-weight: 650; font-size: 13px; margin-right: 14px; white-space: nowrap; }
.verdict.yes { color: var(--third); }
.verdict.no { color: var(--fifth); }
.verdict.open { color: var(--muted); }
.claim.yes { border-color: var(--third); }
.claim.no { border-color: var(--fifth); }
.claim.open { border-color: var(--muted); }
.mixed { width: auto; }
.mixed td, .mixed th { padding-right: 24px; }
.mixed td:first-child, .mixed th:first-child { text-align: right; }
.mixed td.left, .mixed th.left { text-align: left; }
.study { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 20px;
  margin: 16px 0; }
.study h2 { margin: 0 0 10px; }
.study p { margin: 0 0 6px; }
.study ul { list-style: none; margin: 8px 0 0; padding: 0; font-size: 13px; }
.study li { margin: 0 0 4px; padding-left: 1.3em; text-indent: -1.3em; }
.study li .verdict { margin-right: 2px; }
a { color: var(--first); }
.study h2 a { color: var(--text); }
@media (max-width: 720px) { .charts, .study { grid-template-columns: 1fr; }
  .charts .last-odd, .charts .alone { max-width: none; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; `body` is HTML, from the functions below."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def paragraph(text: str, style: str = "") -> str:
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def tiles(items: Sequence[tuple[str, str, str]]) -> str:
    """Big numbers: (label, value, detail) each; the first stands out."""
    cells = [
        f'<div class="tile{" main" if i == 0 else ""}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="detail">{escape(detail)}</div></div>'
        for i, (label, value, detail) in enumerate(items)
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def pairs(items: Iterable[tuple[Any, Any]]) -> str:
    """A table of names and values."""
    rows = [f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in items]
    return f'<table class="pairs">{"".join(rows)}</table>'


def columns(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of columns of numbers under their names."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ["<tr>" + "".join(f"<td>{escape(v)}</td>" for v in row) + "</tr>" for row in rows]
    return f'<table class="columns"><tr>{head}</tr>{"".join(lines)}</table>'


def legend(items: Iterable[tuple[str, str, bool]]) -> str:
    """The lines of charts by name: (label, CSS colour, dashed) each."""
    keys = [
        f'<span><i style="border-color: {escape(colour)}; border-top-style: '
        f'{"dashed" if dashed else "solid"}"></i>{escape(label)}</span>'
        for label, colour, dashed in items
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def card(title: str, content: str, style: str = "card") -> str:
    """`content` is HTML."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="{style}">{heading}{content}</div>'


def cards(contents: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(contents)}</div>'


def folded(title: str, content: str) -> str:
    """`content`, which is HTML, behind a line to click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def text_block(prompt: str, text: str) -> str:
    """Text as it is, line breaks and all, after its prompt in bold."""
    # A line feed right after <pre> is dropped by browsers; the empty element keeps it.
    return f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>"
