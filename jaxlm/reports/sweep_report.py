"""report.html of a sweep: the best setting with its interval, and the loss over every axis."""

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.analysis.statistics import Interval, mean_interval, numbers
from jaxlm.reports.figures import Figure, heat_map, heat_maps, interval_band, lines
from jaxlm.reports.study_report import StudyReport, Table, write_study_report

SEED = "seed"
METRIC = "val_loss"
_LOG_RATIO = 8  # numbers that span this factor are shown on a logarithmic axis
_MOST_CURVES = 8
_MOST_MAPS = 12


class FinishedPoint(NamedTuple):
    """point: {path: value} of the fields that it sets. rows: its part of the table, by step."""

    point: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


class Setting(NamedTuple):
    """Points that differ in nothing but the seed.

    values: one for each axis. finals: the last validation losses, nan where not finite.
    """

    values: tuple[tuple, ...]
    finals: tuple[float, ...]
    points: tuple[FinishedPoint, ...]

    @property
    def interval(self) -> Interval:
        return mean_interval(self.finals)


def settings_of(points: Sequence[FinishedPoint], axes: Sequence[tuple[str, ...]]) -> list[Setting]:
    """The settings of a sweep in order; axes: tuples of paths that change together."""
    axes = [axis for axis in axes if axis != (SEED,)]
    groups: dict[tuple, list[FinishedPoint]] = {}
    for point in points:
        values = tuple(tuple(point.point.get(path) for path in axis) for axis in axes)
        groups.setdefault(values, []).append(point)
    return [
        Setting(values, tuple(final_loss(p) for p in members), tuple(members))
        for values, members in groups.items()
    ]


def final_loss(point: FinishedPoint) -> float:
    """The last validation loss; nan where it was not finite."""
    losses = [row[METRIC] for row in point.rows if METRIC in row]
    return float("nan") if not losses or losses[-1] is None else float(losses[-1])


def best_setting(settings: Sequence[Setting]) -> Setting | None:
    """The setting of the lowest mean loss; one with a diverged seed has none. None: all diverged.

    The lowest of many means is on average lower than that setting's true mean.
    """
    finite = [s for s in settings if np.isfinite(np.mean(s.finals))]
    return min(finite, key=lambda s: np.mean(s.finals), default=None)


def describe(setting: Setting, axes: Sequence[tuple[str, ...]]) -> str:
    """ "optim.peak_lr=0.001 model.d_model=64"."""
    axes = [axis for axis in axes if axis != (SEED,)]
    pairs = [
        f"{path}={_text(value)}"
        for axis, values in zip(axes, setting.values, strict=True)
        for path, value in zip(axis, values, strict=True)
    ]
    return " ".join(pairs) or "every point"


def write_sweep_report(
    folder: str | os.PathLike,
    *,
    name: str,
    points: Sequence[FinishedPoint],
    axes: Sequence[tuple[str, ...]],
    config: Mapping[str, Any],
    timings: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> pathlib.Path:
    """Writes `<folder>/report.html` and `<folder>/figures/`; returns the path of the page."""
    settings = settings_of(points, axes)
    best = best_setting(settings)
    ours = [axis for axis in axes if axis != (SEED,)]
    varied = ", ".join(_axis_name(axis) for axis in ours) or "the seed"
    notes = [
        f"{len(points)} points, {len(settings)} settings. "
        + (
            f"The best is {describe(best, axes)}: validation loss {best.interval}."
            if best
            else "Every setting has a seed that diverged."
        ),
        "The best of several settings looks better than it is: its loss is the lowest of many "
        "noisy ones. Settings whose intervals overlap are not told apart.",
    ]
    report = StudyReport(
        name=name,
        question=f"Validation loss by {varied}"
        + (f": lowest at {describe(best, axes)}" if best and ours else ""),
        claims=[],
        figures=[*_axis_figures(settings, ours), _curves(settings, axes)],
        tables=[_table(settings, ours)],
        config=config,
        timings=timings,
        provenance=provenance,
        notes=notes,
    )
    return write_study_report(folder, report)


def _axis_figures(settings: Sequence[Setting], axes: list[tuple[str, ...]]) -> list[Figure]:
    if not axes:
        return []
    seeds = max(len(s.finals) for s in settings)
    caption = f"Validation loss at the end, in nats a token; {_seeds_text(seeds)}"
    if len(axes) == 1:
        return [_line_figure(settings, axes[0], caption)]
    rows, columns = (_values(settings, i) for i in (0, 1))
    rest = list(dict.fromkeys(s.values[2:] for s in settings))
    maps = []
    for others in rest[:_MOST_MAPS]:
        means = np.full((len(rows), len(columns)), np.nan)
        for s in settings:
            if s.values[2:] == others:
                means[rows.index(s.values[0]), columns.index(s.values[1])] = np.mean(s.finals)
        named = zip(itertools.chain(*axes[2:]), itertools.chain(*others), strict=True)
        maps.append((", ".join(f"{_short(p)}={_text(v)}" for p, v in named), means))
    options = {
        "name": "loss_by_two_axes",
        "title": "Validation loss",
        "caption": caption,
        "row_labels": [_label(v) for v in rows],
        "column_labels": [_label(v) for v in columns],
        "x_label": _axis_name(axes[1]),
        "y_label": _axis_name(axes[0]),
        "value_label": "nats a token",
        "missing": "diverged, or not a point of the sweep",
    }
    if len(maps) == 1:
        return [heat_map(maps[0][1], **options)]
    return [heat_maps(maps, **options)]


def _line_figure(settings: Sequence[Setting], axis: tuple[str, ...], caption: str) -> Figure:
    x = [s.values[0][0] if len(axis) == 1 else _label(s.values[0]) for s in settings]
    numbers = [v for v in x if isinstance(v, int | float) and not isinstance(v, bool)]
    plain = len(numbers) == len(x)
    log_x = plain and min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_RATIO
    intervals = [s.interval for s in settings]
    if plain:
        order = np.argsort(x)
        x, intervals = [x[i] for i in order], [intervals[i] for i in order]
    band = interval_band("validation loss", x if plain else [str(v) for v in x], intervals)
    return lines(
        [band],
        name="loss_by_axis",
        title="Validation loss",
        caption=caption,
        x_label=_axis_name(axis),
        y_label="nats a token",
        log_x=log_x,
        x_ticks=x if plain and len(x) <= _MOST_CURVES else None,
    )


def _curves(settings: Sequence[Setting], axes: Sequence[tuple[str, ...]]) -> Figure:
    """Validation loss by step, of the best settings."""
    ranked = sorted(settings, key=lambda s: np.nan_to_num(np.mean(s.finals), nan=np.inf))
    bands = []
    for setting in ranked[:_MOST_CURVES]:
        by_step: dict[int, list[float]] = {}
        for point in setting.points:
            for row in point.rows:
                if METRIC in row:
                    value = row[METRIC]
                    by_step.setdefault(row["step"], []).append(np.nan if value is None else value)
        intervals = [mean_interval(values) for values in by_step.values()]
        bands.append(interval_band(describe(setting, axes), by_step, intervals))
    shown = "all" if len(ranked) <= _MOST_CURVES else f"the best {_MOST_CURVES} of {len(ranked)}"
    return lines(
        bands,
        name="loss_by_step",
        title="Validation loss while training",
        caption=f"Of {shown} settings; {_seeds_text(max(len(s.finals) for s in settings))}",
        x_label="step",
        y_label="nats a token",
        wide=True,
    )


def _table(settings: Sequence[Setting], axes: list[tuple[str, ...]]) -> Table:
    header = [*(_axis_name(axis) for axis in axes), "validation loss", "95% interval", "seeds"]
    header.append("diverged")
    rows = []
    for s in sorted(settings, key=lambda s: np.nan_to_num(np.mean(s.finals), nan=np.inf)):
        mean, low, high = numbers(s.interval)
        between = "none" if np.isnan(s.interval.low) else f"{low} to {high}"
        diverged = int(np.sum(~np.isfinite(s.finals)))
        rows.append([*map(_label, s.values), mean, between, len(s.finals), diverged])
    return Table("Settings, best first", header, rows)


def _values(settings: Sequence[Setting], axis: int) -> list[tuple]:
    values = list(dict.fromkeys(s.values[axis] for s in settings))
    if all(isinstance(v, int | float) for value in values for v in value):
        values.sort()
    return values


def _seeds_text(seeds: int) -> str:
    if seeds == 1:
        return "one seed, so no interval."
    return f"means and 95% t intervals over {seeds} seeds."


def _axis_name(axis: tuple[str, ...]) -> str:
    return " and ".join(map(_short, axis))


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _label(values: tuple) -> str:
    return ", ".join(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value))
    return "none" if value is None else str(value)
