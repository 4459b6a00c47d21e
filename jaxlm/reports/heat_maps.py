"""Drawing of heat maps: one, or several side by side in one scale of colours."""

import math
from typing import NamedTuple

import numpy as np

from jaxlm.reports import style

_COLOURS = "viridis"  # from dark to light in even steps, also to the colour-blind and in print
_LEVELS = 256
_LABEL, _SMALL = 10.0, 9.0  # sizes of text in points
_MOST_IN_CELL, _LEAST_IN_CELL = 8.5, 6.5
_BLACK, _WHITE = "#000000", "#ffffff"
_MIDDLE = 0.179  # luminance against which black and white have the same contrast, 4.6
_BAR_WIDTH, _BAR_HEIGHT = 1.9, 0.13  # inches


class HeatMaps(NamedTuple):
    """What is drawn; `figures.heat_maps` says what it means."""

    maps: tuple[tuple[str, np.ndarray], ...]
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    x_label: str
    y_label: str
    value_label: str
    log: bool
    limits: tuple[float, float]
    annotate: bool
    missing: str  # what a cell without a number means


def limits_of(values: np.ndarray, log: bool) -> tuple[float, float]:
    """The lowest and highest finite value, on a logarithmic scale of those above zero.

    Where there are none or one, an interval around it.
    """
    known = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(known):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(known.min()), float(known.max())
    if low < high:
        return low, high
    margin = abs(low) / 2 or 0.5
    return (low / 2, low * 2) if log else (low - margin, high + margin)


def place_on_scale(values: np.ndarray, limits: tuple[float, float], log: bool) -> np.ndarray:
    """Where values lie between the limits, 0 to 1; beyond them at the ends. NaN stays NaN."""
    values = np.asarray(values, np.float64)
    low, high = limits
    if log:
        values = np.log(np.clip(values, low, high))  # zero, too, is the end
        low, high = math.log(low), math.log(high)
    return np.clip((values - low) / (high - low), 0, 1)


def draw(charts: HeatMaps, title: str, width: float, palette: style.Palette):
    """A matplotlib figure `width` inches wide; its height is what the content takes."""
    from matplotlib.figure import Figure

    rows, columns = charts.maps[0][1].shape
    across = _maps_across(len(charts.maps), columns)
    down = math.ceil(len(charts.maps) / across)
    row_labels = [style.shortened(label, 1.8, _SMALL) for label in charts.row_labels]
    left = 0.42 + max(style.text_width(label, _SMALL) for label in row_labels)
    right, gap = 0.12, 0.22
    map_width = (width - left - right - gap * (across - 1)) / across
    cell_width = min(map_width / columns, 0.95)
    map_width = cell_width * columns
    cell_height = min(max(min(cell_width, 0.4), 0.2 if rows <= 24 else 0.14), 7.0 / rows)
    map_height = cell_height * rows
    column_labels, turned = _column_labels(charts.column_labels, cell_width)
    subtitle = 0.26 if any(name for name, _ in charts.maps) else 0.0
    below = 0.1 + (turned or 0.14)
    lines = style.title_lines(title, width)
    y_bar = style.below_title(lines) + 0.12
    top = y_bar + 0.46
    pitch = subtitle + map_height + below + 0.12
    height = top + down * pitch - 0.12 + 0.26

    figure = Figure(figsize=(width, height))
    style.write_title(figure, lines, palette)
    _colour_bar(figure, charts, y_bar, palette)
    texts, points = _cell_texts(charts, cell_width, cell_height)
    for i, (name, values) in enumerate(charts.maps):
        row, column = divmod(i, across)
        axes = figure.add_subplot()
        x, y = left + column * (map_width + gap), top + row * pitch + subtitle
        style.place(axes, x, y, map_width, map_height)
        axes.set_xlim(0, columns)
        axes.set_ylim(rows, 0)
        _draw_cells(axes, values, charts, palette, spaced=min(cell_width, cell_height) > 0.18)
        if points:
            _annotate(axes, values, charts, texts[i], points)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=_SMALL)
        step = math.ceil(0.15 / cell_height)  # every row, or as many as have room
        axes.set_yticks(np.arange(0, rows, step) + 0.5, row_labels[::step])
        axes.tick_params(labelleft=column == 0)
        axes.set_xticks([place + 0.5 for place, _ in column_labels], [t for _, t in column_labels])
        if turned:
            for label in axes.get_xticklabels():
                label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
        heading = style.shortened(name, map_width)
        axes.text(0, 1 + 0.08 / map_height, heading, transform=axes.transAxes, fontsize=_LABEL)
    used = min(across, len(charts.maps))
    middle = left + (used * map_width + (used - 1) * gap) / 2
    muted = {"color": palette.muted, "ha": "center"}
    style.write(figure, middle, height - 0.09, charts.x_label, **muted)
    middle = top + (down * pitch - 0.12 - below + subtitle) / 2
    side = {"rotation": 90, "rotation_mode": "anchor", **muted}
    style.write(figure, 0.17, middle, charts.y_label, **side)
    return figure


def _maps_across(count: int, columns: int) -> int:
    most = 4 if columns <= 24 else 2 if columns <= 48 else 1
    return math.ceil(count / math.ceil(count / most))


def _column_labels(labels, cell_width: float) -> tuple[list[tuple[int, str]], float | None]:
    """(column, label) of those that are written, and the inches they take where they are turned.

    Numbers are thinned out where they do not fit side by side, words are turned.
    """
    widest = max(style.text_width(label, _SMALL) for label in labels)
    if widest > cell_width - 0.05 and not all(map(_is_number, labels)):
        step = math.ceil(0.14 / cell_width)
        shown = [(i, style.shortened(labels[i], 1.6, _SMALL)) for i in range(0, len(labels), step)]
        return shown, max(style.text_width(text, _SMALL) for _, text in shown)
    step = math.ceil((widest + 0.05) / cell_width) if widest > cell_width - 0.05 else 1
    return [(i, labels[i]) for i in range(0, len(labels), step)], None


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _draw_cells(axes, values: np.ndarray, charts: HeatMaps, palette, spaced: bool) -> None:
    """A rectangle for each cell, those of one colour in one path, which keeps the SVG small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    inset = 0.02 if spaced else -0.03  # a seam would show between cells that only touch
    colours = _colours(_LEVELS)
    scale = place_on_scale(values, charts.limits, charts.log)
    level = np.where(np.isnan(scale), -1, np.minimum(scale * _LEVELS, _LEVELS - 1)).astype(int)
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * (1 - 2 * inset) + inset
    for n in np.unique(level):
        places = np.argwhere(level == n)[:, ::-1]  # x, y
        path = Path.make_compound_path_from_polys(places[:, None, :] + corners)
        if n < 0:
            look = {"hatch": "//////", "facecolor": palette.grid, "edgecolor": palette.muted}
        else:
            look = {"facecolor": colours[n]}
        axes.add_artist(PathPatch(path, linewidth=0, **look))


def _colours(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(c) for c in colormaps[_COLOURS](np.linspace(0, 1, count))]


def _cell_texts(charts: HeatMaps, width: float, height: float) -> tuple[list, float]:
    """The text of each cell of each map, and its size in points, 0 where there is no room."""
    if not charts.annotate or width < 0.15:
        return [], 0.0
    every = np.concatenate([values.ravel() for _, values in charts.maps])
    write = _number_writer(every, charts.log)
    texts = [[[write(v) for v in row] for row in values] for _, values in charts.maps]
    widest = max(style.text_width(t, 10) for t in {t for m in texts for row in m for t in row})
    room = min((width - 0.07) / max(widest, 0.1) * 10, (height - 0.04) * 72 / 1.1, _MOST_IN_CELL)
    return texts, room if room >= _LEAST_IN_CELL else 0.0


def _number_writer(values: np.ndarray, log: bool):
    """A function from a number to two or three digits of it, decimals alike within the map."""
    known = np.abs(values[np.isfinite(values)])
    largest = float(known.max()) if len(known) else 0.0
    whole = bool((known == np.round(known)).all())

    def write(value: float) -> str:
        if math.isnan(value):
            return ""
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        if log or largest < 0.095 or largest >= 9999.5:
            return _two_digits(value)
        decimals = 0 if whole or largest >= 99.5 else 1 if largest >= 9.95 else 2
        text = f"{value:.{decimals}f}"
        return text.lstrip("-") if float(text) == 0 else text

    return write


def _two_digits(value: float) -> str:
    """0.034, 12k, 1e-5."""
    text = style.tick(float(f"{value:.2g}"))
    return text.replace("e-0", "e-")


def _annotate(axes, values, charts: HeatMaps, texts, points: float) -> None:
    from matplotlib.colors import to_rgb

    colours = _colours(_LEVELS)
    scale = place_on_scale(values, charts.limits, charts.log)
    for (row, column), value in np.ndenumerate(scale):
        if math.isnan(value):
            continue
        colour = to_rgb(colours[min(int(value * _LEVELS), _LEVELS - 1)])
        text_colour = _BLACK if luminance(colour) > _MIDDLE else _WHITE
        look = {"ha": "center", "va": "center_baseline", "fontsize": points, "color": text_colour}
        axes.text(column + 0.5, row + 0.5, texts[row][column], **look)


def luminance(rgb: tuple[float, float, float]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1, as contrast ratios count it (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colour_bar(figure, charts: HeatMaps, top: float, palette: style.Palette) -> None:
    """What the colours mean: a bar with numbers after the name of the value, and the hatching."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = charts.limits
    label = style.shortened(charts.value_label, figure.get_size_inches()[0] / 2, _SMALL)
    look = {"fontsize": _SMALL, "color": palette.text}
    style.write(figure, 0.05, top + 0.12, label, **look)
    left = 0.05 + style.text_width(label, _SMALL) + (0.2 if label else 0.1)
    axes = figure.add_subplot()
    style.place(axes, left, top, _BAR_WIDTH, _BAR_HEIGHT)
    if charts.log:
        axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(0, 1)
    edges = np.geomspace(low, high, 65) if charts.log else np.linspace(low, high, 65)
    for start, colour in zip(edges[:-1], _colours(64), strict=True):
        # Each to the end, over the one before: no seams.
        axes.add_artist(Rectangle((start, 0), high - start, 1, facecolor=colour, linewidth=0))
    if charts.log:
        style.log_ticks(axes.xaxis, charts.limits, most=4)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(style.tick))
    axes.set_yticks([])
    axes.tick_params(length=2, labelsize=8, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if any(np.isnan(values).any() for _, values in charts.maps):
        size = figure.get_size_inches()
        x = left + _BAR_WIDTH + 0.35
        place = (x / size[0], 1 - (top + _BAR_HEIGHT) / size[1])
        swatch = Rectangle(
            place,
            0.22 / size[0],
            _BAR_HEIGHT / size[1],
            transform=figure.transFigure,
            facecolor=palette.grid,
            edgecolor=palette.muted,
            hatch="//////",
            linewidth=0,
        )
        figure.add_artist(swatch)
        style.write(figure, x + 0.3, top + 0.12, charts.missing, **look)
