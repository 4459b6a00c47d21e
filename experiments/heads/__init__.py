"""One attention head against many of the same total width: loss, patterns, and what each is worth.

A small decoder on the characters of the bundled plays. The number of heads changes neither the
number of weights nor their initial spread. A trained model is judged with heads taken out, one at a
time and one after the other: set to zero, or to what they give on average.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from experiments.checks import (
    check_at_most,
    check_multiple,
    check_not_empty,
    check_positive,
    check_rising,
)
from experiments.comparing import band, band_by, by_seed, difference, over_seeds, weigh_within
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import Interval, brief, mean_interval, paired_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, heat_maps, lines
from jaxlm.reports.study_report import Table

QUESTION = "What do many attention heads buy at equal width, and what does it cost to lose one?"

ZERO, MEAN = "zero", "its mean"  # fill: what stands where a head was
SCORES = ("previous", "own", "first", "distance")  # where a head looks

ALIKE = 0.03  # nats/token within which two numbers of heads end alike
FREE = 0.02  # nats/token that a head may cost which is said to be idle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The model, its training, and what is looked at.

    num_heads: rising; each divides d_model. The first, `drawn_heads` and the last are compared.
    drawn_heads: of the model whose heads are drawn and listed.
    drawn_tokens: the side of the maps that are drawn.
    eval_tokens: of the validation text; half of them rank the heads, half judge.
    """

    scale: Literal["small", "default", "full"] = "default"
    num_heads: tuple[int, ...] = (1, 2, 4, 8, 16)
    drawn_heads: int = 4
    drawn_tokens: int = 16
    num_seeds: int = 5
    num_layers: int = 2
    d_model: int = 64
    context_length: int = 64
    batch_size: int = 16
    num_steps: int = 800
    eval_every: int = 100
    eval_tokens: int = 16384
    peak_lr: float = 1e-2
    warmup_steps: int = 50

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self, may_be_zero=("warmup_steps",))
        check_rising(self, "num_heads")
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")
        check_at_most(self, "drawn_tokens", "context_length")
        if self.drawn_heads not in self.num_heads[1:]:
            raise ValueError(
                f"drawn_heads={self.drawn_heads} must be among {self.num_heads[1:]} of num_heads"
            )
        for heads in self.num_heads:
            if self.d_model % (2 * heads):  # RoPE turns pairs
                raise ValueError(f"d_model={self.d_model} must be a multiple of {2 * heads}")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "num_heads": (1, 4, 8),
        "num_seeds": 10,
        "d_model": 32,
        "context_length": 32,
        "num_steps": 300,
        "eval_tokens": 8192,
    },
    "full": {
        "num_heads": (1, 2, 4, 8, 16, 32),
        "drawn_heads": 8,
        "num_seeds": 8,
        "num_layers": 6,
        "d_model": 256,
        "context_length": 256,
        "batch_size": 32,
        "num_steps": 3000,
        "eval_every": 300,
        "eval_tokens": 131072,
        "peak_lr": 3e-3,
        "warmup_steps": 200,
    },
}

NOTES = [
    "Heads are told apart by rank, not by number: which head learns what is chance, and averaging "
    "the first head of several seeds would average different things. Half of the validation "
    "windows rank the heads, the other half say what they cost, so that the dearest is not dear by "
    "luck.",
    "Nothing is trained after a head is gone. What a head costs here is more than it would cost a "
    "model that may adapt.",
    "A head's mean is over 32 windows of the training text. It goes into the bias of the output "
    "projection, so a pruned model is the same program with other weights.",
    "All numbers of heads train at one peak rate.",
    "At scale=small a first run over 3 seeds left seven of nine verdicts open and one over 5 left "
    "three; since then it has 10 seeds, with the same claims and thresholds.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each number of heads."""
    sizes = ("num_layers", "d_model", "context_length")
    names = ("num_seeds", "batch_size", "num_steps", "eval_every", "eval_tokens")
    shared = {name: getattr(cfg, name) for name in (*names, "peak_lr", "warmup_steps")}
    return [
        {
            "num_heads": heads,
            "model": {**{name: getattr(cfg, name) for name in sizes}, "num_heads": heads},
            "drawn": cfg.drawn_tokens if heads in (cfg.num_heads[0], cfg.drawn_heads) else 0,
            **shared,
        }
        for heads in cfg.num_heads
    ]


def final(results: Results, num_heads: int) -> Results:
    return results.select("loss", num_heads=num_heads, step=results.config["num_steps"])


def costs(results: Results, num_heads: int, fill: str = MEAN) -> dict[int, dict[int, float]]:
    """{seed: {rank: cost}}, of the dearest head first."""
    found: dict[int, dict[int, float]] = {}
    for row in results.select("cost", num_heads=num_heads, fill=fill).rows:
        found.setdefault(row.seed, {})[row.fields["rank"]] = row.value
    return {seed: dict(sorted(ranks.items())) for seed, ranks in found.items()}


def several(results: Results, num_heads: int, removed: int) -> Results:
    """What it costs to remove so many heads, the cheapest first; one row for each seed."""
    return results.select("cost_of_several", num_heads=num_heads, removed=removed)


def of_heads(results: Results, metric: str, num_heads: int) -> dict[int, np.ndarray]:
    """{seed: f64[N, H]} of a score or, with the mean in its place, of what each head costs."""
    rows = results.select(metric, num_heads=num_heads)
    if metric == "cost":
        rows = rows.select(fill=MEAN)
    found = {}
    for (seed,), group in rows.by("seed").items():
        values = np.full((results.config["num_layers"], num_heads), np.nan)
        for row in group.rows:
            values[row.fields["layer"], row.fields["head"]] = row.value
        found[seed] = values
    return found


def claims(results: Results) -> list[Claim]:
    cfg = results.config
    few, some, most = cfg["num_heads"][0], cfg["drawn_heads"], cfg["num_heads"][-1]
    every = cfg["num_layers"] * most
    of_most = costs(results, most).values()
    by_fill = {fill: costs(results, some, fill) for fill in (ZERO, MEAN)}
    previous, cost = (of_heads(results, metric, some) for metric in ("previous", "cost"))
    looking = {seed: int(np.argmax(values)) for seed, values in previous.items()}
    shares = [
        half / whole
        for half, whole in zip(
            by_seed(several(results, most, every // 2)).values(),
            by_seed(several(results, most, every)).values(),
            strict=True,
        )
    ]
    found = [
        weigh(
            f"{some} heads end with a lower loss than {_heads(few)} of the same total width, in "
            "nats/token",
            difference(final(results, some), final(results, few)),
            below=0.0,
        )
    ]
    if most > some:
        found.append(
            weigh_within(
                f"From {some} to {most} heads the loss changes by less than {ALIKE:g} nats/token",
                "Difference in nats/token",
                {f"{most} less {some}": difference(final(results, most), final(results, some))},
                ALIKE,
            )
        )
    return [
        *found,
        weigh(
            f"With {most} heads in each layer some head is idle: the cheapest costs less than "
            f"{FREE:g} nats/token",
            mean_interval([list(ranks.values())[-1] for ranks in of_most]),
            below=FREE,
        ),
        weigh(
            f"Heads are unlike: of {every} the dearest costs more than three times the median, in "
            "nats/token of difference",
            mean_interval(
                [ranks[1] - 3 * float(np.median(list(ranks.values()))) for ranks in of_most]
            ),
            above=0.0,
        ),
        weigh(
            f"Half of all {every} heads, the cheapest first, cost less than a quarter of what all "
            "of them do",
            mean_interval(shares),
            below=0.25,
        ),
        weigh(
            f"With {some} heads, to replace one by its mean costs less than to set it to zero, "
            "averaged over all heads, in nats/token",
            paired_interval(*(_mean_costs(by_fill[f]) for f in (MEAN, ZERO)), over="seeds"),
            below=0.0,
        ),
        weigh(
            f"One of all {some * cfg['num_layers']} heads has more than half of its attention on "
            "the token before",
            mean_interval([float(np.max(values)) for values in previous.values()]),
            above=0.5,
        ),
        weigh(
            f"With {some} heads, the one most on the token before costs more than the others do on "
            "average, in nats/token of difference",
            mean_interval(
                [
                    float(values.flat[looking[seed]] - np.delete(values, looking[seed]).mean())
                    for seed, values in cost.items()
                ]
            ),
            above=0.0,
        ),
        weigh(
            f"With {some} heads in each, those of the first layer cost more than those of the "
            "last, in nats/token a head",
            mean_interval([float(np.mean(v[0]) - np.mean(v[-1])) for v in cost.values()]),
            above=0.0,
        ),
    ]


def _mean_costs(by_rank: dict[int, dict[int, float]]) -> list[float]:
    return [float(np.mean(list(ranks.values()))) for ranks in by_rank.values()]


def _heads(number: int) -> str:
    return "one" if number == 1 else f"{number}"


_VISIBLE = {" ": "\N{MIDDLE DOT}", "\n": "\N{PILCROW SIGN}"}


def plot(results: Results) -> list[Figure]:
    return [
        _loss_figure(results),
        _cost_figure(results),
        *_pattern_figures(results),
        _several_figure(results),
    ]


def _loss_figure(results: Results) -> Figure:
    cfg = results.config
    return lines(
        [band("loss", ((heads, final(results, heads)) for heads in cfg["num_heads"]))],
        name="loss_by_heads",
        title="Loss by number of heads at equal width",
        caption=f"Validation loss after {cfg['num_steps']} steps: {over_seeds(results)}. All have "
        f"width {cfg['d_model']}, so a head is {cfg['d_model']} / heads wide.",
        x_label="heads in a layer",
        y_label="nats a token",
        log_x=True,
        x_ticks=cfg["num_heads"],
    )


def _cost_figure(results: Results) -> Figure:
    heads, series = results.config["drawn_heads"], []
    for fill in (ZERO, MEAN):
        rows = results.select("cost", num_heads=heads, fill=fill)
        series.append(band_by(f"{fill} in its place", rows, "rank"))
    ranks = sorted(series[0].x)
    return lines(
        series,
        name="cost_by_rank",
        title=f"What one of {len(ranks)} heads costs",
        caption=f"Validation loss without the head minus that with it, of the dearest head to the "
        f"cheapest, {heads} heads in each layer: {over_seeds(results)}. The order comes from "
        "other windows.",
        x_label="rank of the head",
        y_label="nats a token",
        x_ticks=ranks,
    )


def _pattern_figures(results: Results) -> list[Figure]:
    cfg, figures = results.config, []
    for heads in (cfg["drawn_heads"], cfg["num_heads"][0]):
        size, maps = cfg["drawn_tokens"], []
        cost, previous = (of_heads(results, m, heads)[0] for m in ("cost", "previous"))
        rows = results.select("attention", num_heads=heads)
        for (layer, head), group in rows.by("layer", "head").items():
            values = np.full((size, size), np.nan)
            for row in group.rows:
                values[row.fields["query"], row.fields["key"]] = row.value
            costs = f"costs {cost[layer, head]:.2f}"
            maps.append((f"layer {layer + 1}, head {head + 1}: {costs}", values))
        tokens = results.select("token", num_heads=heads).rows
        labels = [_VISIBLE.get(c, c) for c in (row.fields["character"] for row in tokens)]
        figures.append(
            heat_maps(
                maps,
                name=f"patterns_of_{heads}",
                title=f"What each head looks at, {_heads(heads)} in each layer",
                caption="Attention of seed 0 on one validation text, in which a dot is a space. "
                "Costs are nats a token with the mean in its place; the most on the token before, "
                f"on average, is {previous.max():.2f}.",
                row_labels=labels,
                column_labels=labels,
                x_label="looks at",
                y_label="character",
                value_label="attention",
                limits=(0.0, 1.0),
                annotate=False,
                missing="comes later, not seen",
            )
        )
    return figures


def _several_figure(results: Results) -> Figure:
    cfg, series = results.config, []
    for heads in cfg["num_heads"]:
        every = cfg["num_layers"] * heads
        groups = [(n / every, several(results, heads, n)) for n in range(every + 1)]
        series.append(band(f"{_heads(heads)} in a layer", groups))
    return lines(
        series,
        name="cost_of_several",
        title="What it costs to take out one head after the other",
        caption="The cheapest first, in the order of what each costs alone on other windows, with "
        f"its mean in its place: {over_seeds(results)}. Without all of them there is no attention "
        "left.",
        x_label="share of all heads that are gone",
        y_label="nats a token more",
        wide=True,
    )


def tables(results: Results) -> list[Table]:
    cfg = results.config
    by_heads = []
    for heads in cfg["num_heads"]:
        [size] = results.select("parameters", num_heads=heads).values()
        ranks = costs(results, heads).values()
        every = [list(of_seed.values()) for of_seed in ranks]
        columns = [
            mean_interval(final(results, heads).values()),
            *(mean_interval([pick(v) for v in every]) for pick in (max, np.median, min)),
            mean_interval(several(results, heads, cfg["num_layers"] * heads).values()),
        ]
        by_heads.append([heads, cfg["d_model"] // heads, int(size), *map(brief, columns)])
    header = ["heads", "head width", "parameters", "loss", "dearest", "median", "cheapest", "all"]
    return [
        Table(
            "By number of heads: loss, and what a head costs with its mean in its place, in "
            f"nats/token, with 95% t intervals over {cfg['num_seeds']} seeds",
            header,
            by_heads,
        ),
        _table_of_heads(results),
    ]


def _table_of_heads(results: Results) -> Table:
    heads, rows = results.config["drawn_heads"], []
    scores = {name: of_heads(results, name, heads)[0] for name in SCORES}
    of_seed = results.select(num_heads=heads)
    for layer, head in np.ndindex(scores["own"].shape):
        intervals = []
        for fill in (MEAN, ZERO):
            at = of_seed.select(layer=layer, head=head, fill=fill)
            values = [
                next(row.value for row in at.select(metric).rows if row.seed == 0)
                for metric in ("cost", "cost_low", "cost_high")
            ]
            intervals.append(brief(Interval(*values, 0, 0.95, "95% t interval over windows")))
        looks = [float(values[layer, head]) for values in scores.values()]
        rows.append([layer + 1, head + 1, *looks, *intervals])
    header = ["layer", "head", "on the token before", "on its own", "on the first"]
    header += ["mean distance", "cost, mean in its place", "cost, zero"]
    title = (
        f"Each of {heads} heads of seed 0: where it looks, and what it costs in nats/token, with "
        "95% t intervals over windows of the validation text"
    )
    return Table(title, header, rows)
