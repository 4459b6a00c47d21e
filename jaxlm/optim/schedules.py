"""Learning rates as pure functions of n, the number of updates done (0, 1, ...).

n and the hyper-parameters may be traced, or plain numbers and numpy arrays; the work is done in
float32 by jax or by numpy accordingly, and numpy's needs no compilation. Nothing branches on a
value and nothing is checked: `OptimConfig` has checked the ranges.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array


def warmup_inverse_sqrt(n, *, peak_lr, warmup_steps) -> Array:
    """peak * min(t / warmup, sqrt(warmup / t)) with t = n + 1; the peak is at t = warmup.

    A warmup of 0 is one of 1: the first update has the peak.
    """
    xp, n, peak_lr, warmup_steps = _float32(n, peak_lr, warmup_steps)
    t, warmup = n + 1, xp.maximum(warmup_steps, 1)
    return peak_lr * xp.minimum(t / warmup, xp.sqrt(warmup / t))


def warmup_inverse_sqrt_original(n, *, d_model, warmup_steps, lr_scale=1.0) -> Array:
    """lr_scale * d_model^-0.5 * min(t^-0.5, t * warmup^-1.5) with t = n + 1.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 3, where lr_scale is 1.
    """
    xp, n, d_model, warmup_steps, lr_scale = _float32(n, d_model, warmup_steps, lr_scale)
    t, warmup = n + 1, xp.maximum(warmup_steps, 1)
    return lr_scale * d_model**-0.5 * xp.minimum(t**-0.5, t * warmup**-1.5)


def warmup_cosine(n, *, peak_lr, warmup_steps, total_steps, min_lr) -> Array:
    """0 at n = 0, rising to the peak at `warmup_steps`, half a cosine to `min_lr`, held from
    `total_steps` on. The boundaries are absolute: the warmup is part of the total.

    Source: Loshchilov and Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    xp, n, peak, warmup, total, low = _float32(n, peak_lr, warmup_steps, total_steps, min_lr)
    progress = _progress(xp, n, warmup, total)
    fall = low + (peak - low) * (1 + xp.cos(np.float32(np.pi) * progress)) / 2
    return _rise_then_fall(xp, n, peak, warmup, total, low, fall)


def linear(n, *, peak_lr, warmup_steps, total_steps, min_lr) -> Array:
    """As `warmup_cosine`, with a straight line from the peak to `min_lr`."""
    xp, n, peak, warmup, total, low = _float32(n, peak_lr, warmup_steps, total_steps, min_lr)
    fall = peak - (peak - low) * _progress(xp, n, warmup, total)
    return _rise_then_fall(xp, n, peak, warmup, total, low, fall)


def warmup_stable_decay(n, *, peak_lr, warmup_steps, decay_steps, total_steps, min_lr) -> Array:
    """0 at n = 0, the peak from `warmup_steps` on, a straight line to `min_lr` over the last
    `decay_steps` before `total_steps`.

    Source: Hu et al. 2024, "MiniCPM", section 4; linear decay as in Hägele et al. 2024.
    """
    xp, n, peak, warmup, decay, total, low = _float32(
        n, peak_lr, warmup_steps, decay_steps, total_steps, min_lr
    )
    fall = peak - (peak - low) * _progress(xp, n, total - decay, total)
    return _rise_then_fall(xp, n, peak, warmup, total, low, fall)


def constant(n, *, peak_lr) -> Array:
    """The peak at every update, no warmup."""
    xp, n, peak_lr = _float32(n, peak_lr)
    return peak_lr * xp.ones_like(n)


# name -> (function, the hyper-parameters it reads)
SCHEDULES: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "warmup_cosine": (warmup_cosine, ("peak_lr", "warmup_steps", "total_steps", "min_lr")),
    "warmup_inverse_sqrt": (warmup_inverse_sqrt, ("peak_lr", "warmup_steps")),
    "warmup_inverse_sqrt_original": (
        warmup_inverse_sqrt_original,
        ("d_model", "warmup_steps", "lr_scale"),
    ),
    "warmup_stable_decay": (
        warmup_stable_decay,
        ("peak_lr", "warmup_steps", "decay_steps", "total_steps", "min_lr"),
    ),
    "linear": (linear, ("peak_lr", "warmup_steps", "total_steps", "min_lr")),
    "constant": (constant, ("peak_lr",)),
}


def learning_rate(name: str, n, hypers: dict) -> Array:
    """The learning rate of update n + 1 under the schedule `name`; f32 of the shape of n."""
    schedule, reads = SCHEDULES[name]
    return schedule(n, **{hyper: hypers[hyper] for hyper in reads})


def schedule_table(
    name: str, hypers: dict[str, float], num_steps: int, rows: int = 12
) -> list[tuple[int, float]]:
    """(n, learning rate) where the schedule turns and evenly between, at most `rows` of them.

    Computed by numpy: no compilation. n = num_steps - 1 is the last update of the run.
    """
    last, reads = num_steps - 1, SCHEDULES[name][1]
    turns = [0, 1, last]
    if "warmup_steps" in reads:
        turns.append(int(hypers["warmup_steps"]))
    if "decay_steps" in reads:
        turns.append(int(hypers["total_steps"] - hypers["decay_steps"]))
    steps = {n for n in turns if 0 <= n <= last}
    evenly = np.linspace(0, last, max(rows, 2)).round().astype(int).tolist()
    # Each further row goes where the table has its widest gap.
    while len(steps) < min(rows, num_steps):
        steps.add(max(set(evenly) - steps, key=lambda n: min(abs(n - s) for s in steps)))
    plain = {hyper: float(value) for hyper, value in hypers.items()}
    return [(n, float(learning_rate(name, n, plain))) for n in sorted(steps)]


def _float32(*values) -> Any:
    """The array module that fits the values, then the values in float32."""
    xp = jnp if any(isinstance(value, jax.Array) for value in values) else np
    return xp, *(xp.asarray(value, xp.float32) for value in values)


def _progress(xp, n, start, end):
    return xp.clip((n - start) / xp.maximum(end - start, 1), 0, 1)


def _rise_then_fall(xp, n, peak, warmup, total, low, fall):
    rise = peak * n / xp.maximum(warmup, 1)
    return xp.where(n >= total, low, xp.where(n < warmup, rise, fall))
