"""RoPE, learned, sinusoidal and no positions: what they are worth, and what lies beyond training.

A small decoder on the characters of the bundled plays, trained on short windows and scored on
longer ones. Every place of a window is scored on the same targets, so that what changes with the
place is the number of tokens before it and nothing else.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from experiments.checks import check_at_most, check_multiple, check_not_empty, check_positive
from experiments.comparing import (
    at_most,
    band,
    band_by,
    by_seed,
    difference,
    over_seeds,
    weigh_all,
)
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import brief, mean_interval, paired_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, Figure, heat_maps, lines
from jaxlm.reports.study_report import Table

QUESTION = "What does each kind of position buy, and how far beyond its training length does it go?"

ROPE, LEARNED, SINUSOIDAL, NONE = "rope", "learned", "sinusoidal", "none"
KINDS = (ROPE, LEARNED, SINUSOIDAL, NONE)
NAMES = {ROPE: "RoPE", LEARNED: "learned", SINUSOIDAL: "sinusoidal", NONE: "none"}

WORSE = 0.1  # nats/token above the loss at the end of the training length, that a failure costs
KEPT = 0.05  # nats/token above it that are still no failure
EVEN = 1e-5  # spread of cosines of one distance that is rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The model, its training, and the long windows.

    context_length: of training. times: how many of it the longest windows have, at least 3.
    bin_size: tokens of a place; it divides context_length.
    eval_tokens: of the validation text: targets that are scored at every place, and the tokens of
      the validation loss.
    """

    scale: Literal["small", "default", "full"] = "default"
    num_seeds: int = 5
    num_layers: int = 2
    d_model: int = 64
    num_heads: int = 4
    context_length: int = 64
    times: int = 4
    bin_size: int = 16
    batch_size: int = 16
    num_steps: int = 800
    eval_every: int = 100
    eval_tokens: int = 8192
    peak_lr: float = 1e-2
    warmup_steps: int = 50

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self, may_be_zero=("warmup_steps",))
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")
        check_multiple(self, "context_length", "bin_size")
        check_multiple(self, "eval_tokens", "bin_size")
        if self.times < 3:
            raise ValueError(f"times={self.times} must be at least 3")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "d_model": 32,
        "context_length": 32,
        "bin_size": 8,
        "num_steps": 300,
        "eval_tokens": 4096,
    },
    "full": {
        "num_seeds": 8,
        "num_layers": 6,
        "d_model": 256,
        "num_heads": 4,
        "context_length": 256,
        "bin_size": 32,
        "batch_size": 32,
        "num_steps": 3000,
        "eval_every": 300,
        "eval_tokens": 65536,
        "peak_lr": 3e-3,
        "warmup_steps": 200,
    },
}

NOTES = [
    "A learned table has a vector for each place of training and none beyond: the model refuses "
    "longer texts, and its line ends there.",
    "With a window a query sees as many tokens as in training, its own included; the weights are "
    "those of the same training without it. RoPE then meets no distance that it has not seen, but "
    "sinusoidal vectors still do meet places that they have not. Through several layers a place "
    "depends on more text than one window holds.",
    "Every place is scored on the same targets of one validation text. The intervals are over "
    "seeds of training and say nothing about other texts.",
    "Without positions a causal decoder is not blind to order: how many tokens a place attends to "
    "tells it where it is.",
    "All kinds train at one peak rate.",
    "At scale=small a first run over 3 seeds left one of twelve verdicts open; since then it has 5 "
    "seeds, with the same claims and thresholds.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each kind of position."""
    sizes = ("num_layers", "d_model", "num_heads", "context_length")
    names = ("num_seeds", "times", "bin_size", "batch_size", "num_steps", "eval_every")
    names += ("eval_tokens", "peak_lr", "warmup_steps")
    shared = {
        "model": {name: getattr(cfg, name) for name in sizes},
        **{name: getattr(cfg, name) for name in names},
    }
    return [{"positions": kind, **shared} for kind in KINDS]


def final(results: Results, kind: str) -> Results:
    return results.select("loss", positions=kind, step=results.config["num_steps"])


def beyond(results: Results, kind: str, first: float, last: float, windowed=False) -> dict:
    """{seed: mean loss at the places from `first` to `last` times the training length}."""
    length = results.config["context_length"]
    rows = results.select(
        "loss_at",
        positions=kind,
        windowed=windowed,
        place=lambda place: first * length <= place < last * length,
    )
    return {seed: float(np.mean(group.values())) for (seed,), group in rows.by("seed").items()}


def at_the_end(results: Results, kind: str, windowed=False) -> dict:
    """{seed: loss at the last place of the training length}."""
    cfg = results.config
    share = cfg["bin_size"] / cfg["context_length"]
    return beyond(results, kind, 1 - share, 1, windowed)


def claims(results: Results) -> list[Claim]:
    far = results.config["times"]

    def lost(kind, first, last, windowed=False):
        end = at_the_end(results, kind, windowed)
        there = beyond(results, kind, first, last, windowed)
        return paired_interval([there[s] for s in end], [end[s] for s in end], over="seeds")

    def worse(kind, first, last, where, windowed=False):
        name = NAMES[kind] + (", with a window of the training length" if windowed else "")
        return weigh(
            f"{name[0].upper()}{name[1:]}: {where} the loss is more than {WORSE:g} nats/token "
            "above that at its end",
            lost(kind, first, last, windowed),
            above=WORSE,
        )

    twice = "from the training length to twice that"
    beyond_twice = f"from 2 to {far} times the training length"
    found = [
        weigh(
            f"With {NAMES[kind]} positions the loss at the training length ends below that "
            "without any, in nats/token",
            difference(final(results, kind), final(results, NONE)),
            below=0.0,
        )
        for kind in (ROPE, LEARNED, SINUSOIDAL)
    ]
    found.append(
        weigh_all(
            "RoPE ends below both learned and sinusoidal positions",
            "Loss less that of the other, nats/token",
            {
                NAMES[kind]: difference(final(results, ROPE), final(results, kind))
                for kind in (LEARNED, SINUSOIDAL)
            },
            below=0.0,
        )
    )
    near, half = (
        by_seed(results.select("similarity", positions=LEARNED, distance=d))
        for d in (1, results.config["context_length"] // 2)
    )
    return [
        *found,
        worse(SINUSOIDAL, 1, 2, twice),
        worse(ROPE, 1, 2, twice),
        worse(ROPE, 2, far, beyond_twice),
        weigh(
            f"Without positions the loss {beyond_twice} stays within {KEPT:g} nats/token of that "
            "at its end",
            lost(NONE, 2, far),
            below=KEPT,
        ),
        weigh(
            f"With a window of the training length RoPE goes on: {beyond_twice} its loss stays "
            f"within {KEPT:g} nats/token of that at its end",
            lost(ROPE, 2, far, windowed=True),
            below=KEPT,
        ),
        worse(SINUSOIDAL, 2, far, beyond_twice, windowed=True),
        at_most(
            "The cosine of two sinusoidal vectors is a function of their distance alone: none is "
            f"further than {EVEN:.0e} from the mean of its distance",
            results.select("similarity_spread", positions=SINUSOIDAL).values(),
            EVEN,
        ),
        weigh(
            "Learned vectors of neighbours become more alike than those half a window apart, as "
            "cosines",
            paired_interval(list(near.values()), list(half.values()), over="seeds"),
            above=0.0,
        ),
    ]


def plot(results: Results) -> list[Figure]:
    return [
        _place_figure(results),
        _curve_figure(results),
        _distance_figure(results),
        _similarity_figure(results),
    ]


def _place_figure(results: Results) -> Figure:
    cfg, series = results.config, []
    length, half = cfg["context_length"], cfg["bin_size"] / 2
    for windowed in (False, True):
        for colour, kind in enumerate(KINDS):
            rows = results.select("loss_at", positions=kind, windowed=windowed)
            if not rows.rows:
                continue
            groups = [((at + half) / length, group) for (at,), group in rows.by("place").items()]
            label = NAMES[kind] + (", window" if windowed else "")
            series.append(band(label, groups, dashed=windowed, colour=colour + 8 * windowed))
    unigram = results.select("unigram_loss").values()[0]
    lowest = min(unigram, *(float(np.min(line.y)) for line in series))
    return lines(
        series,
        name="loss_by_place",
        title="Loss by place, to beyond the training length",
        caption=f"The same {cfg['eval_tokens']:,} targets at every place: {over_seeds(results)}. "
        f"Training ended at 1, which is {length} tokens; the learned table ends there, too. "
        "Dashed: the same weights, with attention to no more tokens than in training.",
        x_label="place, in training lengths",
        y_label="nats a token",
        y_limits=(lowest - 0.1, unigram + 0.1),
        x_ticks=list(range(cfg["times"] + 1)),
        references=[("unigram", unigram)],
        wide=True,
    )


def _curve_figure(results: Results) -> Figure:
    series = []
    for kind in KINDS:
        series.append(band_by(NAMES[kind], results.select("loss", positions=kind), "step"))
    return lines(
        series,
        name="loss_by_step",
        title="Validation loss at the training length",
        caption=f"Of windows as long as in training: {over_seeds(results)}.",
        x_label="step",
        y_label="nats a token",
    )


def _distance_figure(results: Results) -> Figure:
    rows = results.select("similarity")
    of_sinusoidal = rows.select(positions=SINUSOIDAL)
    return lines(
        [
            Band(
                NAMES[SINUSOIDAL],
                [row.fields["distance"] for row in of_sinusoidal.rows],
                of_sinusoidal.values(),
            ),
            band_by(NAMES[LEARNED], rows.select(positions=LEARNED), "distance"),
        ],
        name="similarity_by_distance",
        title="Cosine of position vectors by distance",
        caption=f"Means over all pairs of a distance; learned ones after training: "
        f"{over_seeds(results)}.",
        x_label="distance in tokens",
        y_label="cosine",
    )


def _similarity_figure(results: Results) -> Figure:
    length, maps = results.config["context_length"], []
    for kind, more in ((SINUSOIDAL, ""), (LEARNED, ", seed 0 after training")):
        values = np.full((length, length), np.nan)
        for row in results.select("cosine", positions=kind).rows:
            a, b = row.fields["a"], row.fields["b"]
            values[a, b] = values[b, a] = row.value
        maps.append((NAMES[kind] + more, values))
    places = [str(place) for place in range(length)]
    return heat_maps(
        maps,
        name="similarity",
        title="Cosines of the position vectors",
        caption="Of sinusoidal vectors they depend on the distance alone: every diagonal has one "
        "colour.",
        row_labels=places,
        column_labels=places,
        x_label="place",
        y_label="place",
        value_label="cosine",
        annotate=False,
    )


def tables(results: Results) -> list[Table]:
    far, rows = results.config["times"], []
    for kind in KINDS:
        for windowed in (False, True):
            end = at_the_end(results, kind, windowed)
            if not end:
                continue
            columns = [end, *(beyond(results, kind, *r, windowed) for r in ((1, 2), (2, far)))]
            texts = [brief(mean_interval(list(c.values()))) if c else "ends" for c in columns]
            trained = brief(mean_interval(final(results, kind).values()))
            rows.append([NAMES[kind], "yes" if windowed else "", trained, *texts])
    header = ["positions", "window", "validation loss", "at the end of the length", "1 to 2 times"]
    title = (
        "Loss in nats/token at the training length and beyond, with 95% t intervals over "
        f"{results.config['num_seeds']} seeds"
    )
    return [Table(title, [*header, f"2 to {far} times"], rows)]
