"""Figures of the study."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.grad_norm_depth import OUTPUTS, PLAIN, SCALED, placed, readings
from experiments.grad_norm_depth.readings import LAYERS, STREAM
from jaxlm.analysis.statistics import Interval, mean_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, Figure, grid, heat_maps, interval_band, lines

COLOURS = (1e-8, 1e2)  # ends of the scale of the maps
HIGHEST_LOSS = 5.0  # that is drawn; a uniform guess among the characters has ln 78 = 4.4
OF = {STREAM: "gradient of the stream", LAYERS: "gradient of a layer's parameters"}
SETTINGS = tuple((residual, output) for residual in (True, False) for output in OUTPUTS)


def plot(results: Results) -> list[Figure]:
    return [
        _map(results, STREAM),
        _map(results, LAYERS),
        *(
            _by_layer(results, metric, placement)
            for placement in results.config["norm_placements"]
            for metric in (STREAM, LAYERS)
        ),
        _slopes(results, STREAM),
        _slopes(results, LAYERS),
        _during_training(results),
        _noise(results),
        _warmup(results),
    ]


def _with(residual: bool) -> str:
    return "residual" if residual else "no residual"


def _name(residual: bool, output: str) -> str:
    return f"{_with(residual)}, {output}"


def _seeds(results: Results) -> str:
    return f"{results.config['num_seeds']} seeds"


def _band(label: str, x: Sequence[Any], intervals: Sequence[Interval], log: bool = False) -> Band:
    """log: the intervals are of natural logarithms."""
    if log:
        ends = (dict(zip(("mean", "low", "high"), np.exp(i[:3]), strict=True)) for i in intervals)
        intervals = [i._replace(**exps) for i, exps in zip(intervals, ends, strict=True)]
    return interval_band(label, x, intervals)


def _log_band(label: str, norms: np.ndarray) -> Band:
    """Geometric means over seeds by layer, with t intervals of the mean log."""
    logs = readings.log_profile(norms)
    layers = range(1, norms.shape[1] + 1)
    return _band(label, layers, [mean_interval(column) for column in logs.T], log=True)


def _map(results: Results, metric: str) -> Figure:
    cfg = results.config
    depths, deepest = sorted(cfg["depths"]), max(cfg["depths"])
    maps = []
    for placement in cfg["norm_placements"]:
        for residual in (True, False):
            values = np.full((len(depths), deepest), np.nan)
            for row, depth in enumerate(depths):
                norms = readings.profile(
                    results,
                    metric,
                    depth=depth,
                    norm_placement=placement,
                    residual=residual,
                    output=PLAIN,
                )
                values[row, :depth] = np.exp(readings.log_profile(norms).mean(axis=0))
            maps.append((f"{placed(placement)}, {_with(residual)}", values))
    return heat_maps(
        maps,
        name=f"map_{metric}",
        title=f"At the start: norm of the {OF[metric]}, by depth and layer",
        caption=f"Geometric mean over {_seeds(results)}, plain output projections; layer 1 reads "
        "the embeddings.",
        row_labels=depths,
        column_labels=range(1, deepest + 1),
        x_label="layer",
        y_label="depth",
        value_label="gradient norm, nats a token",
        log=True,
        limits=COLOURS,
        annotate=False,
        missing="no such layer",
    )


def _by_layer(results: Results, metric: str, placement: str) -> Figure:
    depth = max(results.config["depths"])
    bands, zeros = [], []
    for residual, output in SETTINGS:
        norms = readings.profile(
            results, metric, depth=depth, norm_placement=placement, residual=residual, output=output
        )
        if (norms > 0).all(axis=0).any():
            bands.append(_log_band(_name(residual, output), norms))
        if (norms == 0).any():
            zeros.append(f"{_name(residual, output)}: {np.mean(norms == 0):.0%} of norms are 0")
    fell = f" Not drawn, below float32: {'; '.join(zeros)}." if zeros else ""
    return lines(
        bands,
        name=f"{metric}_{placement}",
        title=f"{placed(placement).capitalize()}, depth {depth}: {OF[metric]}",
        caption=f"At the start; geometric means with 95% t intervals over {_seeds(results)}."
        + fell,
        x_label="layer",
        y_label="norm, nats a token",
        log_y=True,
    )


def _slopes(results: Results, metric: str) -> Figure:
    cfg, depths = results.config, sorted(results.config["depths"])
    panels = []
    for residual, output in SETTINGS:
        bands = []
        for placement in cfg["norm_placements"]:
            slopes = [
                readings.slope(
                    readings.profile(
                        results,
                        metric,
                        depth=depth,
                        norm_placement=placement,
                        residual=residual,
                        output=output,
                    )
                ).slope
                for depth in depths
            ]
            bands.append(_band(placed(placement), [str(depth) for depth in depths], slopes))
        panels.append((_name(residual, output), bands))
    return grid(
        panels,
        name=f"slope_{metric}",
        title=f"Slope of ln norm of the {OF[metric]}, a layer",
        caption=f"At the start. Above 0 the norm falls towards the input, below 0 it grows; means "
        f"of the slopes of {_seeds(results)} with 95% t intervals. A gap: a norm is 0 in float32.",
        x_label="depth",
        y_label="slope a layer",
        x_ticks=[str(depth) for depth in depths],
        references=[("", 0.0)],
    )


def _during_training(results: Results) -> Figure:
    cfg = results.config
    depth, warmup = max(cfg["trained_depths"]), max(cfg["warmups"])
    panels = []
    for placement in cfg["norm_placements"]:
        for output in OUTPUTS:
            bands = []
            for step in (0, *cfg["measured_steps"]):
                at = {"depth": depth, "norm_placement": placement, "output": output}
                more = {"warmup_steps": warmup} if step else {}
                norms = readings.profile(results, LAYERS, step, residual=True, **at, **more)
                bands.append(_log_band(f"step {step}", norms))
            panels.append((f"{placed(placement)}, {output}", bands))
    return grid(
        panels,
        name="during_training",
        title=f"Depth {depth} in training: {OF[LAYERS]}",
        caption=f"With residuals and {warmup} steps of warmup; geometric means with 95% t "
        f"intervals over {_seeds(results)}.",
        x_label="layer",
        y_label="norm, nats a token",
        log_y=True,
    )


def _noise(results: Results) -> Figure:
    cfg = results.config
    warmup, steps = max(cfg["warmups"]), (0, *cfg["measured_steps"])
    panels = []
    for placement in cfg["norm_placements"]:
        bands = []
        for depth in sorted(cfg["trained_depths"]):
            at = {"depth": depth, "norm_placement": placement, "output": SCALED, "residual": True}
            scales = [
                readings.noise(
                    results.select(step=step, **at, **({"warmup_steps": warmup} if step else {})),
                    cfg["num_examples"],
                )
                for step in steps
            ]
            bands.append(_band(f"depth {depth}", [str(step) for step in steps], scales))
        panels.append((placed(placement), bands))
    return grid(
        panels,
        name="noise_scale",
        title="Gradient noise scale through training",
        caption="The batch, in sequences, whose gradient has as much noise as signal (McCandlish "
        f"et al. 2018), from the gradients of {cfg['num_examples']} single sequences in each of "
        f"{_seeds(results)}: estimate with its 95% jackknife interval. Residuals, scaled output "
        f"projections, {warmup} steps of warmup. A gap: noise too large to measure.",
        x_label="step",
        y_label="sequences",
        log_y=True,
        x_ticks=[str(step) for step in steps],
    )


def _warmup(results: Results) -> Figure:
    cfg = results.config
    panels, lowest = [], HIGHEST_LOSS
    for depth in sorted(cfg["trained_depths"])[-2:]:
        for placement in cfg["norm_placements"]:
            bands = []
            for output in OUTPUTS:
                for warmup in cfg["warmups"]:
                    losses = results.select(
                        "training_loss",
                        depth=depth,
                        norm_placement=placement,
                        residual=True,
                        output=output,
                        warmup_steps=warmup,
                    ).by("step")
                    intervals = [mean_interval(group.values()) for group in losses.values()]
                    lowest = np.nanmin([lowest, *(i.mean for i in intervals)])  # diverged
                    label = f"{output}, {f'warmup {warmup}' if warmup else 'no warmup'}"
                    bands.append(_band(label, [step for (step,) in losses], intervals))
            panels.append((f"{placed(placement)}, depth {depth}", bands))
    return grid(
        panels,
        name="warmup",
        title="Training loss with and without warmup",
        caption=f"With residuals, peak rate {cfg['peak_lr']:g}; means of {cfg['log_every']} steps "
        f"with 95% t intervals over {_seeds(results)}. Not drawn: above {HIGHEST_LOSS:g}.",
        x_label="step",
        y_label="nats a token",
        y_limits=(lowest - 0.1, HIGHEST_LOSS),
    )
