"""Line charts as inline SVG that takes its colours from the page, light or dark."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from jaxlm.reports.style import ON_PAGE, drawing, for_page, log_ticks, tick

LINE_COLOURS = ON_PAGE.lines
FIRST, SECOND = LINE_COLOURS[:2]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a chart. y may hold NaN, where there is then a gap.

    smooth: draw the values faintly, and over them their running average.
    points: mark each value, for series of few.
    dashed: for a line of a colour that another has.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: str = FIRST
    smooth: bool = False
    points: bool = False
    dashed: bool = False


def chart(
    curves: list[Curve],
    *,
    title: str,
    y_label: str,
    x_label: str = "step",
    name: str,
    size: tuple[float, float] = (9.0, 3.6),
    log_y: bool = False,
    crop_start: bool = False,
    legend: bool = True,
) -> str:
    """An `<svg>` element with text as text, readable by a screen reader through its title.

    Args:
      name: unique on the page; the ids inside the SVG start with it.
      size: width and height in inches; the page scales it.
      log_y: logarithmic y axis.
      crop_start: end the y axis below the first, much greater values of a falling curve.
      legend: name the curves inside the chart, where there are several.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with drawing(name, ON_PAGE):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        # Margins by hand: a layout engine draws everything twice.
        left, right, bottom, top = 0.72, 0.24, 0.46, 0.3  # inches
        width, height = size[0] - left - right, size[1] - bottom - top
        axes = figure.add_axes(
            (left / size[0], bottom / size[1], width / size[0], height / size[1])
        )
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        for curve in curves:
            _draw(axes, curve)
        if log_y:
            axes.set_yscale("log")
            log_ticks(axes.yaxis, axes.get_ylim())
        elif crop_start:
            axes.set_ylim(*cropped_limits(curves))
        elif min(np.nanmin(curve.y) for curve in curves) >= 0:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        last = max(max(curve.x) for curve in curves)
        axes.set_xlim(0, last * 1.02 if last else 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        if legend and len(curves) > 1:
            axes.legend(frameon=False, loc="upper right", ncols=len(curves))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return for_page(buffer.getvalue(), name, title)


def running_average(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of the odd number `window` of values around each place, fewer at the ends.

    NaN is left out; where all are NaN, so is the result.
    """
    y = np.asarray(y, np.float64)
    known = np.isfinite(y)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    place, reach = np.arange(len(y)), window // 2
    start, end = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(y))
    count = counts[end] - counts[start]
    mean = (totals[end] - totals[start]) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The running average that shows where a noisy series goes; few values are left as they are."""
    y = np.asarray(values, np.float64)
    return running_average(y, max(5, len(y) // 40 * 2 + 1)) if len(y) >= 40 else y


def cropped_limits(curves: list[Curve]) -> tuple[float, float]:
    """y limits that hold all but the steepest start of falling curves.

    The top is the greatest value after the first twentieth of each curve, or the greatest of all
    where that is no more than half as high again above the bottom.
    """
    values, later_values = [], []
    for curve in curves:
        x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        values.append(y)
        later_values.append(y[x >= x.max(initial=0) / 20])
    low, high = np.concatenate(values).min(), np.concatenate(values).max()
    later = np.concatenate(later_values).max()
    if high - low > 1.5 * (later - low) and later > low:
        high = later
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _draw(axes, curve: Curve) -> None:
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    marks = {"marker": "o", "markersize": 4} if curve.points or len(x) == 1 else {}
    line = {"color": curve.colour, "linestyle": "--" if curve.dashed else "-"}
    if curve.smooth and len(x) >= 40:
        axes.plot(x, y, color=curve.colour, alpha=0.28, linewidth=0.9)
        axes.plot(x, smoothed(y), linewidth=1.8, label=curve.label, **line)
    else:
        axes.plot(x, y, linewidth=1.8, label=curve.label, **line, **marks)
