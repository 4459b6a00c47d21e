"""How an MLP that spells names starts, and what that costs it in the end.

The MLP of Bengio: 3 characters, embeddings of 10, a hidden layer of 200 tanh units; the names in
random order, 80% to train, 10% to develop on and 10% to test, each a document of its own.
"""

import dataclasses
import math
from typing import Any, Literal

from experiments.checks import check_multiple, check_not_empty, check_positive
from experiments.comparing import band, difference
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import brief, mean_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, lines
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
    "small": {"num_seeds": 3, "num_steps": 200, "eval_every": 25},
    "full": {"num_seeds": 10, "num_steps": 12_000, "eval_every": 200},
}

NOTES = [
    "A tanh unit is saturated where its value is beyond 0.99 in size, and dead if it is so at "
    "every position of the training names looked at: no gradient passes.",
    "The bundled list is short: 12,000 parameters learn it by heart, and its losses rise again. "
    "The figures that are known for these settings are of a list fifteen times as long.",
    "All zero: the hidden layer, the head and the biases are zero, the embeddings are drawn. All "
    "equal: the weights of the hidden layer and of the head are 0.1.",
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


def _shifted(results: Results, by: float) -> list[float]:
    return [value - by for value in results.values()]


def _alone(results: Results, metric: str) -> float:
    [value] = results.select(metric).values()
    return value


def claims(results: Results) -> list[Claim]:
    cfg, uniform = results.config, math.log(_alone(results, "vocabulary"))
    found = []

    def say(text, interval, unit, **side):
        claim = weigh(text, interval, **side)
        found.append(claim._replace(evidence=f"{unit}: {claim.evidence}"))

    first = {s: results.select("first_loss", start=s) for s in STARTS}
    say(
        "With weights of size 1 the first loss is more than twice log V",
        mean_interval(first["loud"].values()),
        "Nats a character",
        above=2 * uniform,
    )
    say(
        "With a head of 0.01 the first loss is log V to within 0.05",
        mean_interval([abs(v) for v in _shifted(first["tuned"], uniform)]),
        "Nats a character",
        below=0.05,
    )
    say(
        "With weights of size 1 more than half of the hidden values are saturated",
        mean_interval(results.select("saturated", start="loud").values()),
        "Share",
        above=0.5,
    )
    say(
        "At the gain of 5/3 less than a quarter is",
        mean_interval(results.select("saturated", start="tuned").values()),
        "Share",
        below=0.25,
    )
    say(
        "The quiet head alone makes the loud start end lower",
        difference(
            at_end(results, "dev_loss", "loud, quiet head"), at_end(results, "dev_loss", "loud")
        ),
        "Nats a character",
        below=0.0,
    )
    say(
        "The tuned start ends lower than the loud one with a quiet head",
        difference(
            at_end(results, "dev_loss", "tuned"), at_end(results, "dev_loss", "loud, quiet head")
        ),
        "Nats a character",
        below=0.0,
    )
    say(
        "Batch norm makes the loud start end lower",
        difference(
            at_end(results, "dev_loss", NORMED), at_end(results, "dev_loss", "loud, quiet head")
        ),
        "Nats a character",
        below=0.0,
    )
    say(
        "Folded into the layer before, batch norm gives the same logits to 1e-5 of the largest",
        mean_interval(results.select("fold_difference").values()),
        "Share",
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
            _shifted(at_end(results, "sgd_loss", "all zero"), _alone(results, "unigram_loss"))
        ),
        "Nats a character above the unigram distribution",
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
            mean_interval(at_end(results, "dev_loss", "tuned").values()),
            "Nats a character",
            below=cfg["goal"],
        )
    return found


def plot(results: Results) -> list[Figure]:
    seeds = f"Means with 95% t intervals over {results.config['num_seeds']} seeds."
    curves = []
    for start in _all_starts():
        groups = results.select("dev_loss", start=start).by("step").items()
        curves.append(band(start, ((step, group) for (step,), group in groups)))
    uniform = math.log(_alone(results, "vocabulary"))
    loud = brief(mean_interval(results.select("first_loss", start="loud").values()))
    lowest = min(y for line in curves for y in line.y if math.isfinite(y))
    figures = [
        lines(
            curves,
            name="dev_loss",
            title="Development loss by start",
            caption=f"{seeds} Before the first step the loud start is at {loud}; where it lies "
            "above the chart it is cut off.",
            x_label="step",
            y_label="nats a character",
            y_limits=(lowest - 0.05, uniform + 0.2),
            references=[("uniform", uniform)],
            wide=True,
        )
    ]
    for metric, title, label, limits in (
        ("value_size", "Size of the values by layer", "standard deviation", (0.0, 1.0)),
        ("deep_gradient", "Size of the gradient by layer", "share of that at the last", None),
        ("deep_saturated", "Saturated values by layer", "share beyond 0.99", (0.0, 1.0)),
    ):
        series = []
        for gain in GAINS:
            groups = results.select(metric, gain=gain).by("layer").items()
            series.append(band(f"gain {gain}", ((layer, g) for (layer,), g in groups)))
        figures.append(
            lines(
                series,
                name=metric,
                title=title,
                caption=f"A stack of {results.config['depth']} tanh layers, weights of size "
                f"gain / sqrt(width), before training. {seeds}",
                x_label="layer",
                y_label=label,
                log_y=limits is None,
                y_limits=limits,
            )
        )
    return figures


def tables(results: Results) -> list[Table]:
    def of(metric, start):
        return brief(mean_interval(results.select(metric, start=start).values()))

    def end(metric, start):
        return brief(mean_interval(at_end(results, metric, start).values()))

    rows = [
        [
            start,
            of("first_loss", start),
            of("saturated", start),
            of("dead", start),
            end("train_loss", start),
            end("dev_loss", start),
            end("test_loss", start),
        ]
        for start in _all_starts()
    ]
    header = ["start", "first loss", "saturated", "dead units", "train", "dev", "test"]
    seeds = f"95% t intervals over {results.config['num_seeds']} seeds"
    symmetric = [
        [start, of("gradient_spread", start), of("unit_spread", start), end("sgd_loss", start)]
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
