"""How an MLP that spells names starts, and what that costs it in the end.

The MLP of Bengio: 3 characters, embeddings of 10, a hidden layer of 200 tanh units; the names in
random order, 80% to train, 10% to develop on and 10% to test, each a document of its own.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from experiments.checks import check_multiple, check_not_empty, check_positive
from experiments.comparing import band_by, difference, over_seeds
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import brief, mean_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, grid, heat_maps, lines
from jaxlm.reports.study_report import Table

QUESTION = "What do initial weights, and batch normalisation, decide before the first step?"

# Standard deviations of the initial hidden layer and head. All inputs of a unit are of size 1, so
# that a sigma of 1 / sqrt(inputs) gives sums of size 1, and 5/3 is the usual gain of a tanh.
WINDOW, D_EMBED = 3, 10
_TUNED = 5 / 3 / math.sqrt(WINDOW * D_EMBED)
STARTS = {
    "loud": (1.0, 1.0),
    "loud, quiet head": (1.0, 0.01),
    "tuned": (_TUNED, 0.01),
}
NORMED = "loud, batch norm"
SYMMETRY = ("all zero", "all equal", "tuned")
GAINS = {"1": 1.0, "5/3": 5 / 3, "3": 3.0}
QUANTILES = tuple(n / 20 for n in range(21))  # of the hidden units, by how often they saturate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """path: a file with a name on each line; none: the bundled list of 2,064 given names.

    goal: nats a character that the tuned start must reach on the development part; none: no claim.
    depth, d_deep: of a plain stack of tanh layers, through which a gain is followed.
    """

    scale: Literal["small", "default", "full"] = "default"
    path: str | None = None
    names_sha256: str | None = None
    goal: float | None = None
    d_model: int = 200
    num_seeds: int = 5
    rows: int = 32
    row_length: int = 64
    num_steps: int = 400
    eval_every: int = 50
    peak_lr: float = 1e-2
    weight_decay: float = 0.05  # of AdamW; on a list of 32,000 names a little helps
    depth: int = 20
    d_deep: int = 200

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        check_multiple(self, "num_steps", "eval_every")


SCALES: dict[str, dict[str, Any]] = {
    "small": {"num_steps": 200, "eval_every": 25},
    "full": {"num_seeds": 10, "num_steps": 12_000, "eval_every": 200},
}

NOTES = [
    "A tanh unit is saturated where its value is beyond 0.99 in size, and dead if it is so at "
    "every position of the training names looked at: no gradient passes.",
    "The bundled list is short: 12,000 parameters learn it by heart, and its losses rise again. "
    "The figures that are known for these settings are of a list fifteen times as long.",
    "All zero: the hidden layer, the head and the biases are zero, the embeddings are drawn. All "
    "equal: the weights of the hidden layer and of the head are 0.1. Both are trained for "
    "no more than 400 steps.",
    "At scale=small a first run over 3 seeds left the comparisons with the tuned start and with "
    "batch norm open; since then it has 5. The claims on hidden values after training were added "
    "then, before they were measured; the others are as they were.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """The starts, the same with batch norm, the symmetric starts, and the deep stack."""
    names = ("path", "names_sha256", "d_model", "num_seeds", "rows", "row_length", "num_steps")
    shared = {
        name: getattr(cfg, name) for name in (*names, "eval_every", "peak_lr", "weight_decay")
    }
    deep = {name: getattr(cfg, name) for name in ("num_seeds", "depth", "d_deep")}
    return [
        {"part": "starts", **shared},
        {"part": "batch norm", **shared},
        {"part": "symmetry", **shared},
        {"part": "depth", **deep},
    ]


def _all_starts() -> tuple[str, ...]:
    return (*STARTS, NORMED)


def at_end(results: Results, metric: str, start: str) -> Results:
    """One row for each seed."""
    return results.select(metric, start=start, step=results.config["num_steps"])


def _alone(results: Results, metric: str) -> float:
    [value] = results.select(metric).values()
    return value


def claims(results: Results) -> list[Claim]:
    cfg, uniform = results.config, math.log(_alone(results, "vocabulary"))
    last_step = cfg["num_steps"]
    found = []

    def say(text, interval, unit, **side):
        claim = weigh(text, interval, **side)
        found.append(claim._replace(evidence=f"{unit}: {claim.evidence}"))

    def end(start: str) -> Results:
        return at_end(results, "dev_loss", start)

    def hidden(metric: str, start: str, step: int = 0) -> Results:
        return results.select(metric, start=start, step=step)

    first = {s: results.select("first_loss", start=s).values() for s in STARTS}
    say(
        "With weights of size 1 the first loss is more than twice log V",
        mean_interval([loss / uniform for loss in first["loud"]]),
        "Times log V",
        above=2.0,
    )
    say(
        "With a head of 0.01 the first loss is log V to within 0.05",
        mean_interval([abs(loss - uniform) for loss in first["tuned"]]),
        "Nats a character of difference",
        below=0.05,
    )
    say(
        "With weights of size 1 more than half of the hidden values are saturated",
        mean_interval(hidden("saturated", "loud").values()),
        "Share",
        above=0.5,
    )
    say(
        "With a hidden layer of gain 5/3 less than a quarter of them are",
        mean_interval(hidden("saturated", "tuned").values()),
        "Share",
        below=0.25,
    )
    say(
        "Trained from the loud start, more hidden values are saturated than at its beginning",
        difference(hidden("saturated", "loud", last_step), hidden("saturated", "loud")),
        "Share gained",
        above=0.0,
    )
    say(
        "Trained from the loud start, more than one hidden unit in a hundred is dead",
        mean_interval(hidden("dead", "loud", last_step).values()),
        "Share",
        above=0.01,
    )
    say(
        "A quiet head alone makes the loud start end lower",
        difference(end("loud, quiet head"), end("loud")),
        "Nats a character",
        below=0.0,
    )
    say(
        "The tuned start ends lower than the loud one with a quiet head",
        difference(end("tuned"), end("loud, quiet head")),
        "Nats a character",
        below=0.0,
    )
    say(
        "With batch norm the loud start with a quiet head ends lower than without",
        difference(end(NORMED), end("loud, quiet head")),
        "Nats a character",
        below=0.0,
    )
    say(
        "Folded into the layer before, batch norm gives the same logits to 1e-5 of the largest",
        mean_interval(results.select("fold_difference").values()),
        "Share of the largest logit",
        below=1e-5,
    )
    for start in SYMMETRY[:2]:
        say(
            f"{start.capitalize()}: after training all hidden units still are the same, to 1e-6",
            mean_interval(results.select("unit_spread", start=start).values()),
            "Largest difference of a weight between two units",
            below=1e-6,
        )
    say(
        "All zero: what is learned is no more than the frequency of each character, to 0.02",
        mean_interval(
            [
                loss - _alone(results, "unigram_loss")
                for loss in results.select("sgd_loss", start="all zero").values()
            ]
        ),
        "Nats a character, loss less that of the frequencies",
        above=-0.02,
    )
    last = results.config["depth"]
    for gain, text, side in (
        (
            "1",
            "At a gain of 1 values of a deep tanh stack shrink to less than half",
            {"below": 0.5},
        ),
        ("5/3", "At 5/3 they keep more than three quarters of their size", {"above": 0.75}),
    ):
        a, b = (results.select("value_size", gain=gain, layer=n).values() for n in (last, 1))
        ratio = mean_interval([x / y for x, y in zip(a, b, strict=True)])
        say(f"{text} from layer 1 to {last}", ratio, "Ratio", **side)
    say(
        f"At 3 more than half of the values at layer {last} are saturated",
        mean_interval(results.select("deep_saturated", gain="3", layer=last).values()),
        "Share",
        above=0.5,
    )
    if cfg["goal"] is not None:
        say(
            f"The tuned start reaches a development loss of {cfg['goal']:g} or lower",
            mean_interval(end("tuned").values()),
            "Nats a character",
            below=cfg["goal"],
        )
    return found


def plot(results: Results) -> list[Figure]:
    return [
        _loss_figure(results),
        _saturation_figure(results),
        _symmetry_figure(results),
        *_depth_figures(results),
    ]


def _loss_figure(results: Results) -> Figure:
    curves = [
        band_by(start, results.select("dev_loss", start=start), "step") for start in _all_starts()
    ]
    uniform = math.log(_alone(results, "vocabulary"))
    first = {
        start: brief(mean_interval(results.select("first_loss", start=start).values()))
        for start in ("loud", "tuned")
    }
    lowest = min(y for line in curves for y in line.y if math.isfinite(y))
    highest = max(uniform, *(line.y[-1] for line in curves if math.isfinite(line.y[-1])))
    return lines(
        curves,
        name="dev_loss",
        title="Development loss by start",
        caption=f"Names that are not trained on: {over_seeds(results)}. Before the first step the "
        f"loud start is at {first['loud']}, the tuned one at {first['tuned']}; what lies above the "
        "chart is cut off.",
        x_label="step",
        y_label="nats a character",
        y_limits=(lowest - 0.05, highest + 0.2),
        references=[("uniform", uniform)],
        wide=True,
    )


def _saturation_figure(results: Results) -> Figure:
    panels = []
    for title, step in (("before training", 0), ("after", results.config["num_steps"])):
        series = [
            band_by(start, results.select("saturated_unit", start=start, step=step), "units")
            for start in _all_starts()
        ]
        panels.append((title, series))
    return grid(
        panels,
        name="saturated_units",
        title="How often each hidden unit is saturated",
        caption="The hidden units in order, from the one least often beyond 0.99 to the one most "
        f"often, on names of the training part: {over_seeds(results)}. A unit at 1 is dead. Before "
        "training the two loud starts are the same.",
        x_label="share of the units",
        y_label="share of its values beyond 0.99",
        y_limits=(0.0, 1.02),
    )


def _symmetry_figure(results: Results) -> Figure:
    maps = []
    for start in SYMMETRY:
        rows = results.select("head_gradient", start=start)
        by_character = rows.by("character")
        maps.append((start, np.array([group.values() for group in by_character.values()])))
    return heat_maps(
        maps,
        name="first_gradient",
        title="The first gradient of the head, unit by unit",
        caption="Each column is one of the first hidden units, each row a character that it speaks "
        "for (\\n ends a name). From equal weights all columns are the same, from zeros all are "
        "zero: the units stay one unit. Seed 0.",
        row_labels=[name for (name,) in by_character],
        column_labels=range(1, maps[0][1].shape[1] + 1),
        x_label="hidden unit",
        y_label="character",
        value_label="gradient",
        annotate=False,
    )


def _depth_figures(results: Results) -> list[Figure]:
    figures, depth = [], results.config["depth"]
    loudest = mean_interval(results.select("deep_gradient", gain="3", layer=1).values())
    stack = f"{depth} tanh layers with weights of size gain / sqrt(width), before training"
    exploded = f" At gain 3 it is {brief(loudest)} times as large at the first layer."
    for metric, title, label, limits, more in (
        ("value_size", "Size of the values by layer", "standard deviation", (0.0, 1.0), ""),
        (
            "deep_gradient",
            "Size of the gradient by layer",
            "times that at the last",
            None,
            exploded,
        ),
        ("deep_saturated", "Saturated values by layer", "share beyond 0.99", (0.0, 1.0), ""),
    ):
        series = [
            band_by(f"gain {gain}", results.select(metric, gain=gain), "layer") for gain in GAINS
        ]
        figures.append(
            lines(
                series,
                name=metric,
                title=title,
                caption=f"{stack}: {over_seeds(results)}.{more}",
                x_label="layer",
                y_label=label,
                log_y=limits is None,
                y_limits=limits,
            )
        )
    return figures


def tables(results: Results) -> list[Table]:
    last = results.config["num_steps"]

    def of(metric, start, step=...):
        return brief(mean_interval(results.select(metric, start=start, step=step).values()))

    def end(metric, start):
        return brief(mean_interval(at_end(results, metric, start).values()))

    rows = [
        [
            start,
            of("first_loss", start),
            *(of(metric, start, step) for metric in ("saturated", "dead") for step in (0, last)),
            end("train_loss", start),
            end("dev_loss", start),
            end("test_loss", start),
        ]
        for start in _all_starts()
    ]
    header = ["start", "first loss", "saturated", "at the end", "dead units", "at the end"]
    header += ["train", "dev", "test"]
    seeds = f"95% t intervals over {results.config['num_seeds']} seeds"
    symmetric = [
        [start, *(of(m, start) for m in ("gradient_spread", "unit_spread", "sgd_loss"))]
        for start in SYMMETRY
    ]
    counted = f"{_alone(results, 'counted_loss'):.4f} on the test part"
    return [
        Table(
            f"Losses in nats a character, with {seeds}. A counted 4-gram, which reads as far, with "
            f"Kneser-Ney smoothing: {counted}",
            header,
            rows,
        ),
        Table(
            "Symmetry: the largest difference between two hidden units, of the first gradient and "
            f"of the weights after training by plain SGD, with {seeds}",
            ["start", "first gradient", "weights", "final training loss"],
            symmetric,
        ),
    ]
