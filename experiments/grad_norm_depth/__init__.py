"""Gradient norms by depth: what residuals, norms and the scale of output projections do to them.

A character model at initialisation, 2 to 64 layers deep, and at some depths during training. The
activation is ReLU and the norm is layer norm, as in the first transformer. Residual and output
scale are numbers of one program for each depth and norm placement.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from experiments.checks import check_multiple, check_positive
from experiments.grad_norm_depth import readings
from experiments.grad_norm_depth.readings import LAYERS, STREAM
from jaxlm.analysis.claims import Claim, all_of, evidence, judge, weigh
from jaxlm.analysis.statistics import brief, paired_interval
from jaxlm.core.config import as_typed
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure
from jaxlm.reports.study_report import Table

QUESTION = "How do gradients fare in deep transformers, and what keeps them alive?"

Placement = Literal["pre", "post", "none"]
PLAIN, SCALED = "plain", "scaled"  # output projections: as other matrices, or by 1 / sqrt(2N)
OUTPUTS = (PLAIN, SCALED)

FACTOR = 10.0  # within which the norms of all layers count as kept together
STRAIGHT = 0.9  # r2 of ln norm against layer from which on a fall counts as geometric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Depths, the model and its training. Depths that train are measured at the start too."""

    scale: Literal["small", "default", "full"] = "default"
    depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    trained_depths: tuple[int, ...] = (2, 8, 32)
    norm_placements: tuple[Placement, ...] = ("pre", "post", "none")
    num_seeds: int = 5
    d_model: int = 32
    num_heads: int = 2
    context_length: int = 16
    norm: Literal["rms", "layer"] = "layer"
    activation: Literal["swiglu", "gelu", "relu", "relu_squared", "silu"] = "relu"
    batch_size: int = 8
    num_examples: int = 16  # sequences that gradients are measured on, the same at every step
    num_steps: int = 100
    measured_steps: tuple[int, ...] = (2, 10, 30, 100)  # beside 0; a warmup's first rate is 0
    log_every: int = 10
    peak_lr: float = 3e-3
    warmups: tuple[int, ...] = (0, 60)  # the shortest and the longest are compared
    adam_b2: float = 0.999

    def __post_init__(self):
        for name in ("depths", "trained_depths", "norm_placements", "warmups"):
            value = getattr(self, name)
            if not value or len(set(value)) < len(value):
                raise ValueError(f"{name} must name at least one, and none twice")
        if not set(self.trained_depths) <= set(self.depths):
            trained, depths = as_typed(self.trained_depths), as_typed(self.depths)
            raise ValueError(f"trained_depths={trained} must be among {depths}")
        check_positive(self, may_be_zero=("warmups", "measured_steps"))
        if min(self.depths) < 2:
            depths = as_typed(self.depths)
            raise ValueError(f"depths={depths}: a slope over layers needs at least 2 of them")
        if self.num_examples < 2:
            raise ValueError(f"num_examples={self.num_examples}: a noise scale needs at least 2")
        if (
            len(self.warmups) < 2
            or not 0 <= min(self.warmups) <= max(self.warmups) < self.num_steps
        ):
            raise ValueError(
                f"warmups={self.warmups} must be two or more from 0 to num_steps={self.num_steps}"
            )
        check_multiple(self, "num_steps", "log_every")
        if not all(1 <= step <= self.num_steps for step in self.measured_steps):
            raise ValueError(
                f"measured_steps={self.measured_steps} must be from 1 to num_steps={self.num_steps}"
            )
        if self.adam_b2 >= 1:
            raise ValueError(f"adam_b2={self.adam_b2} must be below 1")


SCALES = {
    "small": {
        "depths": (8, 32),
        "trained_depths": (8,),
        "d_model": 16,
        "num_seeds": 3,
        "num_steps": 40,
        "warmups": (0, 30),
        "measured_steps": (2, 10, 40),
        "num_examples": 8,
    },
    "full": {
        "d_model": 128,
        "num_heads": 4,
        "context_length": 128,
        "batch_size": 32,
        "num_examples": 64,
        "num_steps": 2000,
        "warmups": (0, 500),
        "measured_steps": (2, 10, 100, 500, 2000),
        "log_every": 20,
        "peak_lr": 1e-3,
        "num_seeds": 8,
    },
}

_OF_EVERY_CELL = (
    *("num_seeds", "d_model", "num_heads", "context_length", "norm", "activation"),
    *("batch_size", "num_examples", "num_steps", "measured_steps", "log_every", "peak_lr"),
    *("warmups", "adam_b2"),
)


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each depth and norm placement, shallow ones first; each is one program."""
    values = {name: getattr(cfg, name) for name in _OF_EVERY_CELL}
    shared = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
    return [
        {
            "depth": depth,
            "norm_placement": placement,
            "trained": depth in cfg.trained_depths,
            **shared,
        }
        for depth in sorted(cfg.depths)
        for placement in cfg.norm_placements
    ]


def claims(results: Results) -> list[Claim]:
    cfg = results.config
    depth, placements = max(cfg["depths"]), cfg["norm_placements"]
    found = []
    for placement in placements:
        found.append(_geometric_claim(results, depth, placement, STREAM))
    if "none" in placements:
        found.append(_geometric_claim(results, depth, "none", LAYERS))
    if "pre" in placements:
        found += [_spread_claim(results, depth, output) for output in OUTPUTS]
    if "post" in placements:
        found += _warmup_claims(results, max(cfg["trained_depths"]))
    return found


def placed(placement: str) -> str:
    return "no norm" if placement == "none" else f"{placement}-norm"


def _geometric_claim(results: Results, depth: int, placement: str, metric: str) -> Claim:
    of = "the residual stream" if metric == STREAM else "each layer's parameters"
    fit = readings.slope(
        readings.profile(
            results, metric, depth=depth, norm_placement=placement, residual=False, output=PLAIN
        )
    )
    return Claim(
        f"Without residuals, {placed(placement)}, depth {depth}: the gradient norm of {of} falls "
        f"geometrically towards the input (ln norm rises with the layer, in a line of r2 above "
        f"{STRAIGHT})",
        all_of([judge(fit.slope, above=0.0), judge(fit.r2, above=STRAIGHT)]),
        f"slope {evidence(fit.slope, above=0.0)}; r2 {evidence(fit.r2, above=STRAIGHT)}",
    )


def _spread_claim(results: Results, depth: int, output: str) -> Claim:
    norms = readings.profile(
        results, LAYERS, depth=depth, norm_placement="pre", residual=True, output=output
    )
    return weigh(
        f"Pre-norm with residuals, {output} output projections, depth {depth}: the largest layer "
        f"gradient norm is within a factor of {FACTOR:g} of the smallest",
        readings.spread(norms),
        below=FACTOR,
    )


def _warmup_claims(results: Results, depth: int) -> list[Claim]:
    cfg = results.config
    steps = max(cfg["warmups"])
    found = [_warmup_claim(results, depth, output) for output in OUTPUTS]
    at = {"depth": depth, "norm_placement": "post", "residual": True, "warmup_steps": steps}
    found.append(
        weigh(
            f"Post-norm, depth {depth}, with warmup: output projections scaled by 1/sqrt(2N) lower "
            "the final loss",
            paired_interval(
                readings.final_losses(results, output=PLAIN, **at),
                readings.final_losses(results, output=SCALED, **at),
                over="pairs of one seed",
            ),
            above=0.0,
        )
    )
    return found


def _warmup_claim(results: Results, depth: int, output: str) -> Claim:
    """Two parts where there is a pre-norm to compare with: it helps, and it helps pre-norm less."""
    at = {"depth": depth, "output": output}
    post = readings.warmup_gains(results, norm_placement="post", **at)
    parts = [
        (
            "loss without minus loss with it: {}",
            readings.warmup_gain(results, norm_placement="post", **at),
        )
    ]
    than_pre = ""
    if "pre" in results.config["norm_placements"]:
        pre = readings.warmup_gains(results, norm_placement="pre", **at)
        parts.append(
            ("the same less that of pre-norm: {}", paired_interval(post, pre, over="seeds"))
        )
        than_pre = ", and by more than that of pre-norm"
    return Claim(
        f"Warmup is what post-norm needs, {output} output projections, depth {depth}: "
        f"{max(results.config['warmups'])} steps of it lower the final loss{than_pre}",
        all_of(judge(interval, above=0.0) for _, interval in parts),
        "; ".join(words.format(evidence(interval, above=0.0)) for words, interval in parts),
    )


def plot(results: Results) -> list[Figure]:
    from experiments.grad_norm_depth import figures

    return figures.plot(results)


def tables(results: Results) -> list[Table]:
    return [_depth_table(results), _warmup_table(results)]


def _depth_table(results: Results) -> Table:
    depth = max(results.config["depths"])
    rows = []
    for placement in results.config["norm_placements"]:
        for residual in (True, False):
            for output in OUTPUTS:
                at = {"norm_placement": placement, "residual": residual, "output": output}
                row = [placed(placement), "on" if residual else "off", output]
                for metric in (STREAM, LAYERS):
                    norms = readings.profile(results, metric, depth=depth, **at)
                    fit = readings.slope(norms)
                    row += [brief(fit.slope), brief(fit.r2).partition(" ")[0]]
                    row += [brief(readings.spread(norms)), f"{np.mean(norms == 0):.0%}"]
                rows.append(row)
    of = ("slope", "r2", "largest / smallest", "zeros")
    header = [f"{name}, {what}" for what in ("stream", "layers") for name in of]
    return Table(
        f"ln gradient norm against layer at the start, depth {depth} (zeros: share of norms that "
        "are 0 in float32)",
        ["norm", "residual", "output", *header],
        rows,
    )


def _warmup_table(results: Results) -> Table:
    cfg = results.config
    rows = []
    for depth in cfg["trained_depths"]:
        for placement in cfg["norm_placements"]:
            for output in OUTPUTS:
                at = {"depth": depth, "norm_placement": placement, "output": output}
                losses = [
                    readings.final_losses(results, residual=True, warmup_steps=warmup, **at)
                    for warmup in cfg["warmups"]
                ]
                lost = int(sum(np.sum(~np.isfinite(each)) for each in losses))
                shown = [f"{each.mean():.3f}" for each in losses]
                gain = brief(readings.warmup_gain(results, **at))
                rows.append([depth, placed(placement), output, *shown, gain, lost])
    header = [f"warmup {steps}" for steps in cfg["warmups"]]
    return Table(
        f"Final training loss with residuals, nats a token (the last {cfg['log_every']} of "
        f"{cfg['num_steps']} steps, mean of seeds)",
        ["depth", "norm", "output", *header, "gain by warmup", "not finite"],
        rows,
    )


NOTES = [
    "The setting of the warmup claim was searched for on some of the same seeds, and a peak rate "
    "was kept at which warmup helped post-norm of depth 32 with scaled output; at 1e-3 it did "
    "little. Its verdict is no independent confirmation.",
    "The gradient of the stream is that of the loss with respect to the residual stream that "
    "enters a layer, without residuals simply the layer's input. A layer's own gradient is the "
    "product of that stream and the gradient that comes back to it: where both shrink by the same "
    "factor a layer, the first towards the output and the second towards the input, the layers' "
    "norms are alike and all of them vanish together.",
    "Norms are taken without squaring very small or large numbers, so a 0 is no artefact of "
    "measuring: either the gradient is below 1.2e-38, the smallest normal float32, or the signal "
    "going forward is, and then no ReLU is active and nothing comes back, not even to the last "
    "layer. The logarithm of 0 is not finite: such a setting has no slope and is reported by the "
    "share of zeros.",
    "Weights: truncated normal with variance 2 / (in + out); scaled output projections start "
    "1 / sqrt(2 N) times as large. Adam without clipping or decay, a constant rate after a linear "
    "warmup. No step reads a batch twice, so the training loss is a loss on new text.",
    "Without residuals every start is trained once, with the longest warmup. All results are at "
    "one learning rate and one length of training; the study of warmup varies both.",
]
