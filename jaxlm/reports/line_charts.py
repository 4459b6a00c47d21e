"""Drawing of lines with bands: one chart, or several side by side on one y axis."""

import math
import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.analysis.statistics import Interval
from jaxlm.reports import style

_DASHES = ("-", (0, (4, 2)), (0, (1.2, 1.6)), (0, (5, 1.6, 1.2, 1.6)))
_LEGEND, _LABEL, _SMALL = 9.5, 10.0, 9.0  # sizes of text in points
_STEPS = (1, 2, 2.5, 5, 10)  # from tick to tick, times a power of ten
_MOST_MARKED = 32  # points of a series that are still marked one by one
_BESIDE = 0.5  # of the distance between categories, over which the points of one are spread


class Band(NamedTuple):
    """A line with its points, and where low and high are given, the interval between them shaded.

    x: numbers, or text for categories, which then stand side by side at equal distances: points
      with bars for their intervals, those of one category beside each other, and no line.
    y, low, high: as long as x; where y is not finite the line has a gap, where low or high is not,
      the shade.
    dashed: for a line that shares the colour of another.
    colour: the place of its colour among those of the chart, 0 to 7 and, dashed, 8 to 15 and so on;
      by default the place of the label among the labels.
    """

    label: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    colour: int | None = None


def interval_band(label: str, x: Iterable[Any], intervals: Iterable[Interval], **look: Any) -> Band:
    """A line through the means of intervals, with the intervals as its band.

    look: more of what a `Band` has, such as dashed=.
    """
    means, lows, highs = zip(*(interval[:3] for interval in intervals), strict=True)
    return Band(label, list(x), list(means), list(lows), list(highs), **look)


class Panel(NamedTuple):
    """One of several charts: its name and lines."""

    subtitle: str
    series: Sequence[Band]


class Reference(NamedTuple):
    """A dashed line across the charts at `y`, with its label beside it."""

    label: str
    y: float


class LineCharts(NamedTuple):
    """What is drawn; `figures.lines` and `figures.grid` say what it means."""

    panels: tuple[Panel, ...]
    x_label: str
    y_label: str
    log_x: bool
    log_y: bool
    y_limits: tuple[float, float] | None
    x_ticks: tuple[Any, ...] | None
    references: tuple[Reference, ...]


class _Look(NamedTuple):
    """How a line is told from the others."""

    label: str
    colour: str
    dash: Any


def draw(charts: LineCharts, title: str, width: float, palette: style.Palette):
    """A matplotlib figure `width` inches wide; its height is what the content takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3))
    across = _panels_across(len(charts.panels))
    down = math.ceil(len(charts.panels) / across)
    looks = [_looks(charts, panel, palette) for panel in charts.panels]
    keys = list(dict.fromkeys(look for panel in looks for look in panel))
    categories = _categories(charts)
    limits = charts.y_limits or _limits(charts)
    floor = limits[0] / 10 if charts.log_y else -math.inf  # where what is not positive goes
    all_axes = [figure.add_subplot() for _ in charts.panels]
    for axes, panel, panel_looks in zip(all_axes, charts.panels, looks, strict=True):
        beside = list(dict.fromkeys(panel_looks))
        for band, look in zip(panel.series, panel_looks, strict=True):
            if categories:
                shift = _BESIDE * (beside.index(look) - (len(beside) - 1) / 2) / len(beside)
                _draw_points(axes, band, look, categories, floor, shift)
            else:
                _draw_band(axes, band, look, floor)
        for reference in charts.references:
            axes.axhline(reference.y, color=palette.muted, linewidth=1, linestyle=(0, (5, 3)))
        _y_axis(axes, limits, charts.log_y)

    # The layout by hand, in inches: what text takes is known, and a layout engine draws twice.
    y_ticks = _tick_labels(all_axes[0].yaxis, limits)
    left = 0.42 + max(style.text_width(label) for label in y_ticks)
    beside = _beside(charts.references)
    right = max((style.text_width(t, _SMALL) for r in beside for t in r), default=0.0)
    right = right + 0.14 if beside else 0.16
    gap = 0.22
    panel_width = (width - left - right - gap * (across - 1)) / across
    panel_height = {1: 2.75 if width > 7 else 2.45}.get(len(charts.panels), 2.1)
    turned = _x_axes(all_axes, charts, categories, panel_width)
    below = 0.1 + (turned or 0.16)  # of every chart: its tick labels
    legend = keys if len(keys) > 1 else []
    key_widths = [0.36 + style.text_width(look.label, _LEGEND) for look in legend]
    legend_rows = style.rows_of(key_widths, width - 0.1, 0.2)
    subtitle = 0.26 if any(panel.subtitle for panel in charts.panels) else 0.0
    title_lines = style.title_lines(title, width)
    y_legend = style.below_title(title_lines)
    top = y_legend + 0.22 * len(legend_rows) + 0.14
    pitch = subtitle + panel_height + below + 0.12
    height = top + down * pitch - 0.12 + 0.26
    figure.set_size_inches(width, height)

    for i, axes in enumerate(all_axes):
        row, column = divmod(i, across)
        x, y = left + column * (panel_width + gap), top + row * pitch + subtitle
        style.place(axes, x, y, panel_width, panel_height)
        axes.tick_params(labelleft=column == 0)
        axes.text(
            0,
            1 + 0.08 / panel_height,
            style.shortened(charts.panels[i].subtitle, panel_width),
            transform=axes.transAxes,
            fontsize=_LABEL,
        )
    style.write_title(figure, title_lines, palette)
    for n, row in enumerate(legend_rows):
        x, y = 0.05, y_legend + 0.16 + 0.22 * n
        for i in row:
            _key(figure, legend[i], x, y, palette, bool(categories))
            x += key_widths[i] + 0.2
    middle = left + (width - left - right) / 2
    style.write(figure, middle, height - 0.09, charts.x_label, ha="center", color=palette.muted)
    middle = top + (down * pitch - 0.12 - below + subtitle) / 2
    label = {"rotation": 90, "rotation_mode": "anchor", "ha": "center", "color": palette.muted}
    style.write(figure, 0.17, middle, charts.y_label, **label)
    last = min(across, len(all_axes)) - 1
    _label_references(all_axes[last], beside, limits, charts, panel_height, palette)
    return figure


def series_colour(place: int, palette: style.Palette) -> tuple[str, Any]:
    """Colour and dashes of the line in this place: past the last colour they come again, dashed."""
    again, colour = divmod(place, len(palette.lines))
    return palette.lines[colour], _DASHES[again % len(_DASHES)]


def _panels_across(count: int) -> int:
    return count if count <= 4 else 3 if count in (5, 6, 9) else 4


def _looks(charts: LineCharts, panel: Panel, palette: style.Palette) -> list[_Look]:
    labels = list(dict.fromkeys(band.label for p in charts.panels for band in p.series))
    looks = []
    for band in panel.series:
        place = labels.index(band.label) if band.colour is None else band.colour
        colour, dash = series_colour(place, palette)
        looks.append(_Look(band.label, colour, _DASHES[1] if band.dashed else dash))
    return looks


def _categories(charts: LineCharts) -> dict[Hashable, int] | None:
    """Where each category stands, or None where x is a number."""
    values = [x for panel in charts.panels for band in panel.series for x in band.x]
    if not any(isinstance(x, str) for x in values):
        return None
    names = dict.fromkeys((*(charts.x_ticks or ()), *values))
    return {name: i for i, name in enumerate(names)}


def _arrays(band: Band, categories: dict[Hashable, int] | None):
    """x, y, low, high in float64, by x where x is a number; NaN where one is not finite."""
    x = np.array([categories[v] for v in band.x] if categories else band.x, np.float64)
    columns = [x]
    for values in (band.y, band.low, band.high):
        column = np.full(len(x), np.nan) if values is None else np.asarray(values, np.float64)
        columns.append(np.where(np.isfinite(column), column, np.nan))
    order = np.argsort(x, kind="stable")
    return [column[order] for column in columns]


def _limits(charts: LineCharts) -> tuple[float, float]:
    """y limits that hold all lines, bands and references, and zero where it is not far."""
    values = [np.array([r.y for r in charts.references], np.float64)]
    for panel in charts.panels:
        for band in panel.series:
            values += [
                np.asarray(v, np.float64) for v in (band.y, band.low, band.high) if v is not None
            ]
    known = np.concatenate(values)
    known = known[np.isfinite(known) & ((known > 0) | (not charts.log_y))]
    if not len(known):
        return (0.1, 1.0) if charts.log_y else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if charts.log_y:
        margin = max(math.exp(0.05 * (math.log(high) - math.log(low))), 1.1)
        # Below the smallest normal number a product may round to its factor.
        return max(low / margin, math.nextafter(0, 1)), max(high * margin, sys.float_info.min)
    if 0 <= low <= 0.4 * high and high > 0:
        return 0.0, high * 1.05
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _on_axis(band: Band, categories, floor: float):
    """The `_arrays`, where y is known, and where there is an interval, too."""
    x, y, low, high = _arrays(band, categories)
    if floor > 0:  # a logarithmic axis
        y, high = (np.where(v > 0, v, np.nan) for v in (y, high))
        low = np.where(low <= 0, floor, low)
    known = np.isfinite(y)
    return x, y, low, high, known, known & np.isfinite(low) & np.isfinite(high)


def _draw_points(axes, band: Band, look: _Look, categories, floor: float, shift: float) -> None:
    x, y, low, high, known, barred = _on_axis(band, categories, floor)
    x = x + shift
    axes.vlines(x[barred], low[barred], high[barred], color=look.colour, alpha=0.5, linewidth=2.5)
    axes.plot(x[known], y[known], color=look.colour, **_point(look))


def _point(look: _Look) -> dict[str, Any]:
    """How a point looks; hollow where a line would be dashed."""
    face = look.colour if look.dash == "-" else "none"
    size = {"markersize": 5, "markeredgewidth": 1.3}
    return {"linestyle": "", "marker": "o", "markerfacecolor": face, **size}


def _draw_band(axes, band: Band, look: _Look, floor: float) -> None:
    x, y, low, high, known, shaded = _on_axis(band, None, floor)
    if shaded.any():
        axes.fill_between(x, low, high, where=shaded, color=look.colour, alpha=0.18, linewidth=0)
        alone = _alone(shaded)  # a shade of no width
        axes.vlines(x[alone], low[alone], high[alone], color=look.colour, alpha=0.5, linewidth=3)
    axes.plot(x, y, color=look.colour, linestyle=look.dash, linewidth=1.8)
    marked = known if len(x) <= _MOST_MARKED else _alone(known)
    axes.plot(x[marked], y[marked], color=look.colour, linestyle="", marker="o", markersize=3.6)


def _alone(known: np.ndarray) -> np.ndarray:
    """Where a value is known and neither of its neighbours is."""
    before, after = np.roll(known, 1), np.roll(known, -1)
    before[:1], after[-1:] = False, False
    return known & ~before & ~after


def _y_axis(axes, limits: tuple[float, float], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if log:
        axes.set_yscale("log")
    axes.set_ylim(*limits)
    if log:
        style.log_ticks(axes.yaxis, limits)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(style.tick))
    axes.grid(True, axis="y", linewidth=0.8)
    axes.set_axisbelow(True)


def _x_axes(all_axes, charts: LineCharts, categories, width: float) -> float | None:
    """Sets the x axes; returns the inches that tick labels take where they had to be turned."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    arrays = [_arrays(band, categories)[0] for panel in charts.panels for band in panel.series]
    values = np.unique(np.concatenate(arrays)) if arrays else np.array([])
    if charts.log_x:
        values = values[values > 0]
    low, high = (values[0], values[-1]) if len(values) else (1.0, 2.0)
    if categories:
        low, high = -0.4, len(categories) - 0.6
    elif charts.log_x:
        margin = max((high / low) ** 0.03, 1.02)
        low, high = low / margin, high * margin
    else:
        margin = 0.03 * (high - low) or 0.5
        low, high = low - margin, high + margin

    for axes in all_axes:
        if charts.log_x:
            axes.set_xscale("log")
        axes.set_xlim(low, high)
    places, turned = None, None
    if categories:
        names = [style.visible(name) for name in categories]
        pitch = width / (high - low)
        if max(style.text_width(name) for name in names) > pitch - 0.06:
            turned = min(1.6, max(style.text_width(name) for name in names))
            names = [style.shortened(name, turned) for name in names]
        places = list(range(len(names)))
    elif charts.x_ticks is not None or (charts.log_x and len(values) <= 12):
        ticks = [float(v) for v in (charts.x_ticks if charts.x_ticks is not None else values)]
        ticks = [v for v in ticks if low <= v <= high]
        places, names = _apart(ticks, low, high, width, charts.log_x)
    whole = len(values) > 0 and bool((values == np.round(values)).all())
    for axes in all_axes:
        if places is not None:
            axes.set_xticks(places, names)
            axes.xaxis.set_minor_locator(NullLocator())
        elif charts.log_x:
            style.log_ticks(axes.xaxis, (low, high))
            axes.xaxis.set_major_formatter(FuncFormatter(style.tick))
        else:
            count = max(2, min(8, int(width / 0.6)))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=count, integer=whole, steps=_STEPS))
            axes.xaxis.set_major_formatter(FuncFormatter(style.tick))
        if turned:
            for label in axes.get_xticklabels():
                label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    return turned


def _apart(ticks, low, high, width, log) -> tuple[list[float], list[str]]:
    """The ticks whose labels do not run into the one before."""
    shape = np.log if log else np.asarray
    start, end = shape(low), shape(high)
    places, names, taken = [], [], -math.inf
    for value in sorted(ticks):
        name = style.tick(value)
        middle = float((shape(value) - start) / (end - start) * width)
        half = style.text_width(name) / 2
        if middle - half > taken + 0.07:
            places.append(value)
            names.append(name)
            taken = middle + half
    return places, names


def _tick_labels(axis, limits: tuple[float, float]) -> list[str]:
    ticks = [v for v in axis.get_majorticklocs() if limits[0] <= v <= limits[1]]
    return [style.tick(v) for v in ticks] or [""]


def _beside(references: Sequence[Reference]) -> list[list[str]]:
    """The label of each reference in lines that fit beside the charts."""
    return [style.wrapped(reference.label, 1.3, _SMALL) for reference in references]


def _label_references(axes, labels, limits, charts: LineCharts, height, palette) -> None:
    """Writes the labels right of the lines' ends, pushed apart where they would touch."""
    shape = np.log if charts.log_y else np.asarray
    start, end = shape(limits[0]), shape(limits[1])
    order = sorted(range(len(labels)), key=lambda i: charts.references[i].y)
    below = -0.1
    for i in order:
        reference, lines = charts.references[i], labels[i]
        if not limits[0] <= reference.y <= limits[1]:
            continue
        tall = 0.15 * len(lines)
        middle = float((shape(reference.y) - start) / (end - start)) * height
        middle = max(middle, below + tall / 2)
        below = middle + tall / 2 + 0.02
        for n, line in enumerate(lines):
            y = (middle + (len(lines) - 1) * 0.075 - n * 0.15) / height
            place = {"xy": (1, y), "xycoords": "axes fraction", "textcoords": "offset points"}
            look = {"fontsize": _SMALL, "color": palette.muted, "va": "center"}
            axes.annotate(line, xytext=(5, 0), annotation_clip=False, **place, **look)


def _key(figure, look: _Look, x: float, y: float, palette: style.Palette, pointed: bool) -> None:
    """One entry of the legend: a point or a piece of the line, its label on the baseline y."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    ends = np.array([x + 0.2] if pointed else [x, x + 0.28]) / width
    drawn = _point(look) if pointed else {"linestyle": look.dash, "linewidth": 2}
    line = Line2D(ends, [1 - (y - 0.05) / height] * len(ends), color=look.colour, **drawn)
    line.set_transform(figure.transFigure)
    figure.add_artist(line)
    style.write(figure, x + 0.36, y, look.label, fontsize=_LEGEND, color=palette.text)
