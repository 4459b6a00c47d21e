"""Copying: the classic encoder that solves it, and what a causal model does beyond its lengths.

(a) The classic setting: 10 symbols of which 1..9 are drawn, length 4, one post-norm block of width
32 with 2 heads and a feed-forward of 64, batch 32, Adam at 1e-3, 500 steps.
(b) `sequence <sep> sequence`, trained on lengths up to 16 and tested to 64, by position encoding,
layers and heads.
(c) The head that copies: induction heads, Olsson et al. 2022, "In-context Learning and Induction
Heads".
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from experiments.checks import check_at_most, check_multiple, check_not_empty, check_positive
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import (
    brief,
    mean_interval,
    paired_interval,
    proportion_interval,
)
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, Figure, heat_map, heat_maps, interval_band, lines
from jaxlm.reports.study_report import Table

QUESTION = "How does a transformer learn to copy, and how far beyond the lengths it was trained on?"

Positions = Literal["none", "learned", "sinusoidal", "rope"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The classic setting has its own sizes; these are of the causal one but for the first two."""

    scale: Literal["small", "default", "full"] = "default"
    classic_seeds: int = 32
    classic_steps: int = 500
    num_seeds: int = 5
    positions: tuple[Positions, ...] = ("none", "learned", "sinusoidal", "rope")
    num_layers: tuple[int, ...] = (2,)
    num_heads: tuple[int, ...] = (2,)
    d_model: int = 64
    num_symbols: int = 64  # of which none comes twice in a sequence
    train_length: int = 16  # training draws lengths from 1 to this
    test_lengths: tuple[int, ...] = (4, 8, 12, 16, 20, 24, 32, 48, 64)
    num_test: int = 64  # fresh sequences of each length, for each seed
    num_steps: int = 600
    batch_size: int = 32
    optimizer: Literal["muon", "adamw"] = "muon"
    peak_lr: float = 1e-2
    warmup_steps: int = 50
    eval_every: int = 100

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        longest = max(self.train_length, *self.test_lengths)
        if longest > self.num_symbols:
            raise ValueError(
                f"num_symbols={self.num_symbols} must be at least {longest}, the longest sequence: "
                "no symbol comes twice"
            )
        if self.train_length not in self.test_lengths:
            raise ValueError(f"test_lengths must hold train_length={self.train_length}")
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")


SCALES = {
    "small": {
        "classic_seeds": 8,
        "num_seeds": 3,
        "num_steps": 400,
        "test_lengths": (4, 8, 16, 24, 32),
        "num_symbols": 32,
    },
    "full": {
        "num_layers": (1, 2),
        "num_heads": (1, 2, 4),
        "num_steps": 5000,
        "batch_size": 128,
        "eval_every": 500,
        "d_model": 128,
        "num_test": 256,
    },
}

NOTES = [
    "Optimizer, rate and number of steps of the causal task were chosen after trial runs on seeds "
    "0 and 1: with RoPE, Muon at 0.01 had learned within 400 steps, and Muon and AdamW at 0.003 "
    "had not.",
    "The whole sequence is right if every token is, each predicted from the true ones before it: "
    "that is when greedy decoding gives it, too.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """The classic setting, then one cell for each structure of the causal one."""
    classic = {
        "part": "classic",
        "num_seeds": cfg.classic_seeds,
        "num_steps": cfg.classic_steps,
        "log_every": max(1, cfg.classic_steps // 50),
    }
    names = ("num_seeds", "d_model", "num_symbols", "train_length", "num_test", "num_steps")
    more = ("batch_size", "optimizer", "peak_lr", "warmup_steps", "eval_every")
    shared = {name: getattr(cfg, name) for name in (*names, *more)}
    shared["test_lengths"] = list(cfg.test_lengths)
    shared["map_length"] = min(8, cfg.train_length)
    return [classic] + [
        {
            "part": "causal",
            "positions": positions,
            "num_layers": num_layers,
            "num_heads": num_heads,
            **shared,
        }
        for num_layers in cfg.num_layers
        for num_heads in cfg.num_heads
        for positions in cfg.positions
    ]


def last_step(results: Results) -> int:
    return results.config["num_steps"]


def _final(results: Results, metric: str, **fields: Any) -> Results:
    return results.select(metric, part="causal", step=last_step(results), **fields)


def _largest(results: Results) -> dict[str, int]:
    """The deepest and widest of the structures; what claims are about."""
    return {name: max(results.config[name]) for name in ("num_layers", "num_heads")}


def claims(results: Results) -> list[Claim]:
    cfg, shape = results.config, _largest(results)
    inside, beyond = cfg["train_length"], _beyond(cfg)
    solved = [v == 1.0 for v in results.select("exact_match", part="classic").values()]
    found = [
        weigh(
            "The classic setting is solved without an error on fresh sequences in more than 85% "
            "of seeds",
            proportion_interval(sum(solved), len(solved), over="seeds"),
            above=0.85,
        )
    ]

    def accuracy(positions, length):
        return _final(
            results, "token_accuracy", positions=positions, length=length, **shape
        ).values()

    for positions in cfg["positions"]:
        found.append(
            weigh(
                f"{_name(positions)}: sequences of length {inside}, the longest of training, are "
                "copied with more than 95% of tokens right",
                mean_interval(accuracy(positions, inside)),
                above=0.95,
            )
        )
    for positions in cfg["positions"]:
        found.append(
            weigh(
                f"{_name(positions)}: the copy carries over to length {beyond}: more than half of "
                "the tokens are right",
                mean_interval(accuracy(positions, beyond)),
                above=0.5,
            )
        )
    if {"none", "rope"} <= set(cfg["positions"]):
        found.append(
            weigh(
                f"Without positions more tokens are right at length {beyond} than with RoPE "
                "(Kazemnejad et al. 2023)",
                paired_interval(accuracy("none", beyond), accuracy("rope", beyond), over="seeds"),
                above=0.0,
            )
        )
    for positions in cfg["positions"]:
        best = _best_scores(results, positions=positions, **shape)
        found.append(
            weigh(
                f"{_name(positions)}: one head does the copying, with more than half of its "
                "attention on the symbol to come",
                mean_interval(best),
                above=0.5,
            )
        )
    if len(cfg["num_layers"]) > 1:
        found.append(_layers_claim(results))
    return found


def _layers_claim(results: Results) -> Claim:
    cfg = results.config
    few, many = min(cfg["num_layers"]), max(cfg["num_layers"])
    positions, heads = cfg["positions"][0], max(cfg["num_heads"])
    at = {"positions": positions, "num_heads": heads, "length": cfg["train_length"]}
    a, b = (_final(results, "token_accuracy", num_layers=n, **at).values() for n in (many, few))
    return weigh(
        f"{_name(positions)}: {many} layers copy better than {few} at length {cfg['train_length']}",
        paired_interval(a, b, over="seeds"),
        above=0.0,
    )


def _beyond(cfg: dict[str, Any]) -> int:
    """The test length nearest to twice the longest of training."""
    return min(cfg["test_lengths"], key=lambda length: abs(length - 2 * cfg["train_length"]))


def _best_scores(results: Results, **fields: Any) -> list[float]:
    """The highest copy score of any head, by seed."""
    groups = _final(results, "copy_score", **fields).by("seed")
    return [max(group.values()) for group in groups.values()]


def _name(positions: str) -> str:
    names = {"none": "No positions", "rope": "RoPE"}
    return names.get(positions, f"{positions.capitalize()} positions")


def _structures(results: Results) -> list[dict[str, Any]]:
    cfg = results.config
    return [
        {"positions": p, "num_layers": n, "num_heads": h}
        for n in cfg["num_layers"]
        for h in cfg["num_heads"]
        for p in cfg["positions"]
    ]


def _label(results: Results, structure: dict[str, Any]) -> str:
    label = structure["positions"]
    if len(results.config["num_layers"]) * len(results.config["num_heads"]) > 1:
        label += f", {structure['num_layers']} layers, {structure['num_heads']} heads"
    return label


def plot(results: Results) -> list[Figure]:
    cfg = results.config
    lengths, structures = cfg["test_lengths"], _structures(results)
    labels = [_label(results, structure) for structure in structures]

    def means(metric):
        return np.array(
            [
                [np.mean(_final(results, metric, length=n, **s).values()) for n in lengths]
                for s in structures
            ]
        )

    longest = cfg["train_length"]
    seeds = f"mean over {cfg['num_seeds']} seeds"
    axes = {
        "row_labels": labels,
        "column_labels": lengths,
        "x_label": "length of the sequence",
        "y_label": "positions",
    }
    figures = [
        heat_maps(
            [("tokens", means("token_accuracy")), ("whole sequences", means("exact_match"))],
            name="accuracy_by_length",
            title="What is copied right, by length",
            caption=f"Trained on lengths 1 to {longest}; {seeds}. Beyond {longest} nothing was "
            "ever seen.",
            value_label="share right",
            limits=(0.0, 1.0),
            **axes,
        )
    ]
    shape = _largest(results)
    figures.append(
        lines(
            [
                _band(
                    _name(p),
                    lengths,
                    [
                        _final(results, "token_accuracy", positions=p, length=n, **shape).values()
                        for n in lengths
                    ],
                )
                for p in cfg["positions"]
            ],
            name="accuracy_beyond_training",
            title="Tokens copied right",
            caption=f"Means with 95% t intervals over {cfg['num_seeds']} seeds; training ended "
            f"at length {longest}.",
            x_label="length of the sequence",
            y_label="share of tokens right",
            y_limits=(0.0, 1.02),
        )
    )
    steps = sorted({row.step for row in results.select("loss", part="causal").rows})
    figures.append(
        lines(
            [
                _band(
                    _name(p),
                    steps,
                    [
                        results.select(
                            "token_accuracy",
                            part="causal",
                            positions=p,
                            length=longest,
                            step=step,
                            **shape,
                        ).values()
                        for step in steps
                    ],
                )
                for p in cfg["positions"]
            ],
            name="learning_to_copy",
            title=f"Learning to copy {longest} symbols",
            caption="The share of tokens right on fresh sequences, while training goes on.",
            x_label="step",
            y_label="share of tokens right",
            y_limits=(0.0, 1.02),
        )
    )
    figures.append(_score_figure(results, structures, labels))
    figures.append(_attention_figure(results, shape))
    figures.append(_classic_figure(results))
    return figures


def _band(label: str, x: Sequence[float], values: Sequence[Sequence[float]]) -> Band:
    return interval_band(label, x, [mean_interval(each) for each in values])


def _score_figure(results: Results, structures, labels) -> Figure:
    heads = list(
        dict.fromkeys(
            (row.fields["layer"], row.fields["head"]) for row in _final(results, "copy_score").rows
        )
    )
    values = np.full((len(structures), len(heads)), np.nan)
    for i, structure in enumerate(structures):
        for (layer, head), group in (
            _final(results, "copy_score", **structure).by("layer", "head").items()
        ):
            values[i, heads.index((layer, head))] = np.mean(group.values())
    return heat_map(
        values,
        name="copy_scores",
        title="Which head copies",
        caption="Attention to the symbol that comes next in the sequence, averaged over the copy "
        f"and over {results.config['num_seeds']} seeds: 1 is a head that does nothing else.",
        row_labels=labels,
        column_labels=[f"layer {layer + 1}, head {head + 1}" for layer, head in heads],
        x_label="",
        y_label="positions",
        value_label="copy score",
        limits=(0.0, 1.0),
        missing="no such head",
    )


def _attention_figure(results: Results, shape: dict[str, int]) -> Figure:
    best, where, words = -1.0, None, ""
    for positions in results.config["positions"]:
        rows = _final(results, "attention", positions=positions, **shape).rows
        at = {name: rows[0].fields[name] for name in ("positions", "layer", "head")}
        [score] = [
            row.value for row in _final(results, "copy_score", **at, **shape).rows if row.seed == 0
        ]
        if score > best:
            best, where = score, at
            words = f"{_name(positions)}, layer {at['layer'] + 1}, head {at['head'] + 1}"
    rows = _final(results, "attention", **where, **shape).rows
    size = 1 + max(row.fields["query"] for row in rows)
    values = np.full((size, size), np.nan)
    for row in rows:
        values[row.fields["query"], row.fields["key"]] = row.value
    tokens = _final(results, "token", **where, **shape).rows
    labels = ["sep" if row.value == 1 else f"{row.value - 2:.0f}" for row in tokens]
    return heat_map(
        values,
        name="copying_head",
        title="The head that copies, at work",
        caption=f"{words}, seed 0, copy score {best:.2f}: from the separator on, each place looks "
        "at the symbol that comes next in the sequence.",
        row_labels=labels,
        column_labels=labels,
        x_label="looks at",
        y_label="place",
        value_label="attention",
        limits=(0.0, 1.0),
        annotate=False,
        missing="comes later, not seen",
    )


def _classic_figure(results: Results) -> Figure:
    losses = results.select("loss", part="classic").by("step")
    steps = [step for (step,) in losses]
    band = _band("loss", steps, [group.values() for group in losses.values()])
    accuracy = results.select("exact_match", part="classic").values()
    return lines(
        [band],
        name="classic_loss",
        title="The classic setting",
        caption=f"Training loss over {len(accuracy)} seeds, with its 95% t interval; after "
        f"{steps[-1]} steps {sum(v == 1 for v in accuracy)} of {len(accuracy)} seeds make no "
        "error on 100 fresh sequences.",
        x_label="step",
        y_label="nats a token",
        log_y=True,
    )


def tables(results: Results) -> list[Table]:
    cfg = results.config
    rows = []
    for structure in _structures(results):
        for metric in ("token_accuracy", "exact_match"):
            cells = []
            for length in cfg["test_lengths"]:
                values = _final(results, metric, length=length, **structure).values()
                cells.append(brief(mean_interval(values)))
            rows.append([_label(results, structure), metric.replace("_", " "), *cells])
    header = ["positions", "share right of", *(f"length {n}" for n in cfg["test_lengths"])]
    return [Table("Accuracy by length: mean and 95% t interval over seeds", header, rows)]
