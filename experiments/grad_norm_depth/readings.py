"""What is read off the rows of the study: arrays over seeds, slopes, ratios and noise scales."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxlm.analysis.noise_scale import noise_scale
from jaxlm.analysis.statistics import (
    Interval,
    mean_interval,
    mean_slope_interval,
    paired_interval,
    ratio_interval,
    slope_interval,
)
from jaxlm.core.results import Results

LAYERS, STREAM = "layer_gradient_norm", "stream_gradient_norm"


def profile(results: Results, metric: str, step: int = 0, **fields: Any) -> np.ndarray:
    """float[seeds, N]: norms by layer, from the input on, of one setting."""
    seeds = results.select(metric, step=step, **fields).by("seed").values()
    return np.array([of_seed.values() for of_seed in seeds])


def log_profile(norms: np.ndarray) -> np.ndarray:
    """Natural logs; a norm that is 0 in float32 gives -inf."""
    with np.errstate(divide="ignore"):
        return np.log(norms)


class Slope(NamedTuple):
    """Of ln norm against layer, a line for each seed; r2: of those lines."""

    slope: Interval
    r2: Interval


def slope(norms: np.ndarray) -> Slope:
    """No interval where a norm is 0: its log is not finite."""
    logs, layers = log_profile(norms), np.arange(1, norms.shape[1] + 1)
    lines = [slope_interval(layers, row).r2 for row in logs]
    return Slope(mean_slope_interval(layers, logs), mean_interval(lines))


def spread(norms: np.ndarray) -> Interval:
    """The largest norm of any layer over the smallest, geometric mean over seeds."""
    smallest = norms.min(axis=1)
    if (smallest == 0).any():
        lost = f"no interval: a norm is 0 in {np.sum(smallest == 0)} of {len(norms)} seeds"
        return Interval(math.inf, math.nan, math.nan, len(norms), 0.95, lost)
    return ratio_interval(norms.max(axis=1), smallest, over="seeds")


def noise(results: Results, batch_size: int) -> Interval:
    """The gradient noise scale, in examples, of rows of one setting and step.

    The estimate is the ratio of the means over seeds; its interval is a jackknife's, in logs: t of
    the pseudo-values that leave one seed out.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 11.
    """
    examples, batch = (
        np.square(results.select(metric).values())
        for metric in ("example_gradient_norm_rms", "gradient_norm")
    )
    num = len(batch)

    def scale(kept):
        return noise_scale(examples[kept].mean(), batch[kept].mean(), batch_size).scale

    whole = scale(slice(None))
    if num < 2:
        return Interval(whole, math.nan, math.nan, num, 0.95, "no interval over 1 seed")
    left_out = np.array([scale(np.arange(num) != seed) for seed in range(num)])
    if not (0 < whole < math.inf and np.all((left_out > 0) & (left_out < math.inf))):
        why = "no interval: noise too large, or gradient zero, without some seed"
        return Interval(whole, math.nan, math.nan, num, 0.95, why)
    pseudo = num * math.log(whole) - (num - 1) * np.log(left_out)
    half = mean_interval(pseudo).high - pseudo.mean()
    return Interval(
        whole,
        whole * math.exp(-half),
        whole * math.exp(half),
        num,
        0.95,
        f"95% jackknife interval over {num} seeds",
    )


def final_losses(results: Results, **fields: Any) -> np.ndarray:
    """float[seeds]: training loss over the last steps, each on a batch seen for the first time."""
    return np.array(
        results.select("training_loss", step=results.config["num_steps"], **fields).values()
    )


def warmup_gains(results: Results, **fields: Any) -> np.ndarray:
    """float[seeds]: how much lower the final loss is with the longest warmup than without."""
    warmups = results.config["warmups"]
    without, with_it = (
        final_losses(results, residual=True, warmup_steps=pick(warmups), **fields)
        for pick in (min, max)
    )
    return without - with_it


def warmup_gain(results: Results, **fields: Any) -> Interval:
    gains = warmup_gains(results, **fields)
    return paired_interval(gains, np.zeros_like(gains), over="pairs of one seed")
