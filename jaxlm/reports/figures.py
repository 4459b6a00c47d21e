"""Figures of studies and sweeps: lines with bands, heat maps, and several of them side by side.

Each is drawn two ways: as an element of a page, in the page's colours, and as files for slides and
papers, in dark colours on white.
"""

import io
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.reports import heat_maps as _heat_maps
from jaxlm.reports import line_charts, style
from jaxlm.reports.files import write_atomic
from jaxlm.reports.line_charts import Band, LineCharts, Panel, Reference, interval_band

__all__ = [
    "Band",
    "Figure",
    "Panel",
    "Reference",
    "grid",
    "heat_map",
    "heat_maps",
    "interval_band",
    "lines",
]

_HALF, _WIDE = 5.4, 11.0  # inches, of a column of a page and of the whole
_DPI = 160
_MOST_COLUMNS_IN_HALF = 12


class Figure(NamedTuple):
    """One figure of a study.

    name: unique on a page and the stem of the files: letters, digits, "-" and "_".
    caption: what one should see in it, with numbers.
    wide: takes the whole width of a page, else half.
    """

    name: str
    title: str
    caption: str
    wide: bool
    content: LineCharts | _heat_maps.HeatMaps

    def svg(self, prefix: str = "") -> str:
        """An `<svg>` element that takes its colours from the variables of the page, and its width.

        prefix: of the ids in it, where several pages' figures come together.
        """
        with style.drawing(self.name, style.ON_PAGE):
            buffer = io.StringIO()
            _draw(self, style.ON_PAGE).savefig(
                buffer, format="svg", transparent=True, metadata={"Date": None}
            )
        return style.for_page(buffer.getvalue(), prefix + self.name, self.title)

    def write(self, folder: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
        """Writes `<name>.svg` and `<name>.png` into the folder, dark on white."""
        folder = pathlib.Path(folder)
        paths = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        with style.drawing(self.name, style.ON_WHITE):
            drawn = _draw(self, style.ON_WHITE)
            for path in paths:
                buffer = io.BytesIO()
                kind = path.suffix[1:]
                about = {"Date": None} if kind == "svg" else {"Title": self.title}
                drawn.savefig(buffer, format=kind, dpi=_DPI, facecolor="white", metadata=about)
                write_atomic(path, buffer.getvalue())
        return paths


def lines(series: Sequence[Band], *, wide: bool = False, **options: Any) -> Figure:
    """One chart of `grid`, without a subtitle. wide: over the whole width of a page."""
    return grid([Panel("", series)], wide=wide, **options)


def grid(
    panels: Sequence[Panel | tuple[str, Sequence[Band]]],
    *,
    name: str,
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_limits: tuple[float, float] | None = None,
    x_ticks: Sequence[Any] | None = None,
    references: Sequence[tuple[str, float]] = (),
    wide: bool | None = None,
) -> Figure:
    """Charts of (subtitle, series) side by side on the same axes, with one legend.

    Lines with shaded intervals over numbers, or over categories points with bars. What is not
    finite, or not positive on a logarithmic axis, leaves a gap. Lines are told apart by colour,
    past eight also by dashes; a label has one colour in all charts.

    Args:
      y_limits: of the axis; by default what holds everything, with zero where that is not far.
      x_ticks: where x is marked; of categories their order.
      references: (label, y) of dashed lines across the chart, labelled at their right end.
      wide: over the whole width of a page; by default where there are several.

    Raises:
      ValueError: a name that cannot be that of a file, or values that do not fit together.
    """
    content = _line_charts(panels, x_label, y_label, log_x, log_y, y_limits, x_ticks, references)
    return _figure(name, title, caption, len(panels) > 1 if wide is None else wide, content)


def heat_map(values: Any, **options: Any) -> Figure:
    """One map of `heat_maps`, without a subtitle."""
    return heat_maps([("", values)], **options)


def heat_maps(
    maps: Sequence[tuple[str, Any]],
    *,
    name: str,
    title: str,
    caption: str,
    row_labels: Sequence[Any] | np.ndarray,
    column_labels: Sequence[Any] | np.ndarray,
    x_label: str,
    y_label: str,
    value_label: str,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    annotate: bool = True,
    missing: str = "no value",
) -> Figure:
    """Tables of numbers as colours of one scale, each with its first row on top.

    Args:
      maps: (subtitle, values [rows, columns]); NaN is hatched.
      value_label: what the numbers are, with their unit.
      log: colours by the logarithm; what is not positive has the colour of the low end.
      limits: values of the two ends of the colours; by default the lowest and highest value.
      annotate: write the numbers into the cells, where they fit.
      missing: what a NaN means; said in the figure and after the caption.

    Raises:
      ValueError: as `grid`.
    """
    rows, columns = (tuple(map(style.visible, names)) for names in (row_labels, column_labels))
    shown = []
    for subtitle, values in maps:
        values = np.array(values, np.float64)
        if values.shape != (len(rows), len(columns)) or values.size == 0:
            raise ValueError(
                f"figure {name!r}: values of shape {values.shape} for "
                f"{len(rows)} row labels and {len(columns)} column labels"
            )
        shown.append((style.visible(subtitle), values))
    if not shown:
        raise ValueError(f"figure {name!r}: no values")
    every = np.concatenate([values.ravel() for _, values in shown])
    scale = limits or _heat_maps.limits_of(every, log)
    _check_limits(name, scale, log)
    caption = caption.strip()
    if limits and ((every < scale[0]) | (every > scale[1])).any():
        ends = f"{style.tick(scale[0])} or {style.tick(scale[1])}"
        caption += f" Values beyond {ends} have the colour of that end."
    if np.isnan(every).any():
        caption += f" Hatched: {missing}."
    content = _heat_maps.HeatMaps(
        maps=tuple(shown),
        row_labels=rows,
        column_labels=columns,
        x_label=style.visible(x_label),
        y_label=style.visible(y_label),
        value_label=style.visible(value_label),
        log=log,
        limits=(float(scale[0]), float(scale[1])),
        annotate=annotate,
        missing=style.visible(missing),
    )
    wide = len(shown) > 1 or len(columns) > _MOST_COLUMNS_IN_HALF
    return _figure(name, title, caption, wide, content)


def _figure(name: str, title: str, caption: str, wide: bool, content: Any) -> Figure:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"figure name {name!r}: expected letters, digits, - and _")
    return Figure(name, style.visible(title), caption.strip(), wide, content)


def _draw(figure: Figure, palette: style.Palette):
    size = _WIDE if figure.wide else _HALF
    if isinstance(figure.content, LineCharts):
        return line_charts.draw(figure.content, figure.title, size, palette)
    return _heat_maps.draw(figure.content, figure.title, size, palette)


def _line_charts(panels, x_label, y_label, log_x, log_y, y_limits, x_ticks, references):
    clean = []
    for subtitle, series in panels:
        clean.append(Panel(style.visible(subtitle), tuple(map(_checked, series))))
    xs = [x for panel in clean for band in panel.series for x in band.x]
    if not xs:
        raise ValueError("a chart without a single value")
    named = [isinstance(x, str) for x in xs]
    if any(named) and not (all(named) and not log_x):
        raise ValueError("x is either text, on a plain axis, or numbers in all series")
    if y_limits is not None:
        _check_limits("y", y_limits, log_y)
    return LineCharts(
        panels=tuple(clean),
        x_label=style.visible(x_label),
        y_label=style.visible(y_label),
        log_x=log_x,
        log_y=log_y,
        y_limits=None if y_limits is None else (float(y_limits[0]), float(y_limits[1])),
        x_ticks=None if x_ticks is None else tuple(x_ticks),
        references=tuple(Reference(style.visible(label), float(y)) for label, y in references),
    )


def _checked(band: Band) -> Band:
    if (band.low is None) != (band.high is None):
        raise ValueError(f"series {band.label!r}: low and high come together")
    columns = [list(v) for v in (band.x, band.y, band.low, band.high) if v is not None]
    sizes = {len(column) for column in columns}
    if len(sizes) > 1:
        raise ValueError(f"series {band.label!r}: x, y, low and high differ in length")
    return band._replace(label=style.visible(band.label), x=columns[0], y=columns[1])


def _check_limits(name: str, limits: tuple[float, float], log: bool) -> None:
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        above = ", above zero on a logarithmic scale" if log else ""
        raise ValueError(f"{name}: limits {low:g}, {high:g}: expected low < high{above}")
