"""The one look of charts: colours by the names the pages use, text, numbers beside an axis."""

import functools
import html
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

LIGHT = {
    "page": "#ffffff",
    "card": "#f6f7f9",
    "text": "#1b1f24",
    "muted": "#5c6570",
    "grid": "#e1e5ea",
    "notice": "#fff4db",
    "first": "#2468b4",
    "second": "#c2570c",
    "third": "#2e7d4f",
    "fourth": "#7b4bb3",
    "fifth": "#b8325e",
    "sixth": "#0e7c86",
    "seventh": "#8a6d00",
    "eighth": "#6b7280",
}
DARK = {
    "page": "#14171b",
    "card": "#1d2126",
    "text": "#e6e9ed",
    "muted": "#9aa4b0",
    "grid": "#323941",
    "notice": "#3b3118",
    "first": "#74aef0",
    "second": "#f59b57",
    "third": "#6cc48d",
    "fourth": "#b794f0",
    "fifth": "#f07fa3",
    "sixth": "#55c3cf",
    "seventh": "#d6b84a",
    "eighth": "#aab3bf",
}
_LINES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


class Palette(NamedTuple):
    """What matplotlib is given to draw with, as #rrggbb; lines: of a chart, in turn."""

    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]


def _palette(colours: dict[str, str]) -> Palette:
    lines = tuple(colours[name] for name in _LINES)
    return Palette(colours["text"], colours["muted"], colours["grid"], lines)


# Matplotlib is given these placeholders; the SVG then refers to the page's own colours.
_PLACEHOLDERS = {name: f"#0102{i:02x}" for i, name in enumerate(("text", "muted", "grid", *_LINES))}
ON_PAGE = _palette(_PLACEHOLDERS)
ON_WHITE = _palette(LIGHT)


def css_colour(placeholder: str) -> str:
    """What a page calls a colour of `ON_PAGE`: "var(--first)"."""
    names = {colour: name for name, colour in _PLACEHOLDERS.items()}
    return f"var(--{names[placeholder]})"


@contextmanager
def drawing(name: str, palette: Palette) -> Iterator[None]:
    """Within it, figures have this look, text stays text, and an SVG depends on its content only.

    name: of the figure; the ids in its SVG are drawn from it.
    """
    import warnings

    from matplotlib import rc_context

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,  # a dollar is a dollar
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.muted,
        "axes.titlecolor": palette.text,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "text.color": palette.text,
        "grid.color": palette.grid,
        "hatch.linewidth": 0.6,
    }
    with rc_context(settings), warnings.catch_warnings():
        # A page has more fonts than matplotlib.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def for_page(svg: str, name: str, title: str) -> str:
    """An SVG drawn with `ON_PAGE` as an element of a page, whose colours and width it takes.

    name: unique on the page; the ids inside the SVG start with it.
    """
    svg = svg[svg.index("<svg") :]
    for colour_name, placeholder in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{colour_name})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # The page sets the size; the view box keeps the proportions.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def tick(value: float, _: int | None = None) -> str:
    """0.0015, 2.5, 2000, 250k: no powers of ten beside the axis."""
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def log_ticks(axis, limits: tuple[float, float], most: int = 9) -> None:
    """Ticks of a logarithmic axis, about `most`: 1, 2 and 5 in each decade, where there are few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = limits
    subs = (1.0, 2.0, 5.0) if math.log10(high / low) < most / 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=most + 1))
    axis.set_minor_formatter(NullFormatter())


def visible(text: Any) -> str:
    """Text on one line: line breaks and other characters without a shape are shown escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


@functools.lru_cache(maxsize=4096)
def text_width(text: str, points: float = 10, bold: bool = False) -> float:
    """Inches that text takes in matplotlib's own font, which is wider than most."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def shortened(text: str, width: float, points: float = 10) -> str:
    """The text, or as much of its start as fits in `width` inches before an ellipsis."""
    if text_width(text, points) <= width:
        return text
    while text and text_width(text + "…", points) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, width: float, points: float = 10, bold: bool = False) -> list[str]:
    """Lines of whole words, each at most `width` inches unless a word is longer."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, points, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def rows_of(widths: Sequence[float], width: float, gap: float) -> list[list[int]]:
    """Places of items in rows: as many to a row as fit in `width` with a gap between them."""
    rows: list[list[int]] = []
    used = 0.0
    for i, item in enumerate(widths):
        if rows and used + gap + item <= width:
            rows[-1].append(i)
            used += gap + item
        else:
            rows.append([i])
            used = item
    return rows


TITLE_POINTS = 11.0
_TITLE_LINE = 0.21  # inches from line to line


def title_lines(title: str, width: float) -> list[str]:
    """The title of a figure `width` inches wide, in the lines it takes."""
    return wrapped(title, width - 0.1, TITLE_POINTS, bold=True)


def below_title(lines: Sequence[str]) -> float:
    """Inches from the top of a figure to below its title."""
    return 0.06 + _TITLE_LINE * len(lines)


def write_title(figure, lines: Sequence[str], palette: Palette) -> None:
    look = {"fontsize": TITLE_POINTS, "fontweight": "bold", "color": palette.text}
    for i, line in enumerate(lines):
        write(figure, 0.05, 0.2 + _TITLE_LINE * i, line, **look)


def write(figure, x: float, y: float, text: str, **look) -> None:
    """Text on the figure; x and y of its baseline in inches from the top left."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, **look)


def place(axes, left: float, top: float, width: float, height: float) -> None:
    """Puts axes into their figure, in inches from its top left."""
    whole_width, whole_height = axes.figure.get_size_inches()
    bottom = whole_height - top - height
    axes.set_position(
        (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    )
