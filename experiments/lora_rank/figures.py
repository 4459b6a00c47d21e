"""Figures of the study."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import comparing
from experiments.lora_rank import readings
from experiments.lora_rank.readings import FULL, NEW, OLD, SCALINGS
from jaxlm.analysis.statistics import brief, mean_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Band, Figure, grid, lines

STOPPED_COLOUR = 7  # of the marks on the learning curves, away from those of the ranks


def plot(results: Results) -> list[Figure]:
    drawn = [perplexity_by_rank(results), perplexity_by_share(results)]
    if results.config["both_scalings"]:
        drawn.append(scalings_by_rank(results))
        if results.config["other_lrs"]:
            drawn.append(scalings_by_rate(results))
    return [*drawn, forgetting_by_rank(results), learning_curves(results)]


def _text(values) -> str:
    return brief(mean_interval(values))


def _perplexity(results: Results) -> str:
    return f"perplexity of a {readings.names_of(results.config)[0]}"


def _trained(of: Results) -> str:
    perplexity = readings.at_best(of, "perplexity").values()
    return f"{readings.num_trainable(of):,} weights reach {_text(perplexity)}"


def _over_seeds(results: Results) -> str:
    return f"{comparing.over_seeds(results).capitalize()}."


def _by_rank(results: Results, metric: str, domain: str) -> list[Band]:
    return [
        comparing.band(
            targets,
            (
                (
                    rank,
                    readings.at_best(readings.adapted(results, targets, rank), metric, domain),
                )
                for rank in results.config["ranks"]
            ),
        )
        for targets in results.config["targets"]
    ]


def perplexity_by_rank(results: Results) -> Figure:
    full = readings.at_best(results.select(method=FULL), "perplexity").values()
    base = readings.of_base(results, "perplexity")
    wide, rank = results.config["targets"][-1], results.config["ranks"][-1]
    best = readings.at_best(readings.adapted(results, wide, rank), "perplexity").values()
    return lines(
        _by_rank(results, "perplexity", NEW),
        name="perplexity_by_rank",
        title="Perplexity on the new domain, by rank",
        caption=f"The frozen base has {base:.1f}; rank {rank} on {wide} comes to {_text(best)}, "
        f"full fine-tuning to {_text(full)}. At the best evaluation, scale alpha/r. "
        + _over_seeds(results),
        x_label="rank",
        y_label=_perplexity(results),
        log_x=True,
        log_y=True,
        x_ticks=results.config["ranks"],
        references=[("frozen base", base), (FULL, float(np.mean(full)))],
    )


def perplexity_by_share(results: Results) -> Figure:
    full = results.select(method=FULL)
    cfg = results.config
    series = []
    for targets in cfg["targets"]:
        settings = [readings.adapted(results, targets, rank) for rank in cfg["ranks"]]
        series.append(
            comparing.band(
                targets,
                (
                    (
                        float(f"{100 * readings.share_trainable(results, each):.3g}"),
                        readings.at_best(each, "perplexity"),
                    )
                    for each in settings
                ),
            )
        )
    series.append(comparing.band(FULL, [(100.0, readings.at_best(full, "perplexity"))]))
    wide, narrow = cfg["targets"][-1], cfg["targets"][0]
    few = readings.adapted(results, wide, cfg["ranks"][0])
    others = {rank: readings.adapted(results, narrow, rank) for rank in cfg["ranks"]}
    # As narrow a comparison as there is: the first rank that trains as many weights, or the last.
    enough = [n for n in others if readings.num_trainable(others[n]) >= readings.num_trainable(few)]
    rank = enough[0] if enough else cfg["ranks"][-1]
    other = f"{_trained(others[rank])} on {narrow} (rank {rank}); "
    return lines(
        series,
        name="perplexity_by_share",
        title="Perplexity on the new domain, by what is trained",
        caption="Where lines lie apart, it matters which weights are trained, and not only how "
        f"many. {_trained(few)} on {wide} (rank {cfg['ranks'][0]}); "
        f"{other if narrow != wide else ''}{_trained(full)} in full fine-tuning. "
        + _over_seeds(results),
        x_label="trainable weights, % of the base's",
        y_label=_perplexity(results),
        log_x=True,
    )


def forgetting_by_rank(results: Results) -> Figure:
    full = results.select("forgetting", method=FULL).values()
    _, new, old = readings.names_of(results.config)
    series = [
        comparing.band(
            targets,
            (
                (rank, readings.adapted(results, targets, rank).select("forgetting"))
                for rank in results.config["ranks"]
            ),
        )
        for targets in results.config["targets"]
    ]
    return lines(
        series,
        name="forgetting_by_rank",
        title="What is forgotten of the old domain, by rank",
        caption=f"Loss on {old} at the best evaluation of {new}, less that of the base "
        f"({readings.of_base(results, domain=OLD):.3f} nats/token). Full fine-tuning forgets "
        f"{_text(full)}. " + _over_seeds(results),
        x_label="rank",
        y_label="forgetting, nats/token",
        log_x=True,
        x_ticks=results.config["ranks"],
        references=[(FULL, float(np.mean(full)))],
    )


def scalings_by_rank(results: Results) -> Figure:
    cfg = results.config
    found = ", ".join(
        f"{s} {_text(_scaled(results, _compared(cfg), cfg['ranks'][-1], s).values())}"
        for s in SCALINGS
    )
    return _scalings(
        results,
        {
            scaling: lambda targets, rank, s=scaling: _scaled(results, targets, rank, s)
            for scaling in SCALINGS
        },
        cfg["ranks"],
        name="scalings_by_rank",
        title="Two scales of what adapters add, by rank",
        caption=f"Alpha {cfg['alpha']:g} and learning rate {cfg['lora_lr']:g} in both, so that at "
        f"rank 1 they are the same. Rank {cfg['ranks'][-1]} on {_compared(cfg)}: {found}. "
        + _over_seeds(results),
        x_label="rank",
    )


def scalings_by_rate(results: Results) -> Figure:
    cfg = results.config
    rank, rates = cfg["ranks"][-1], readings.rates(cfg)
    best = {s: readings.best_rate(results, _compared(cfg), s) for s in SCALINGS}
    found = ", ".join(
        f"{s} {_text(_scaled(results, _compared(cfg), rank, s, rate).values())} at {rate:g}"
        for s, rate in best.items()
    )
    return _scalings(
        results,
        {
            scaling: lambda targets, rate, s=scaling: _scaled(results, targets, rank, s, rate)
            for scaling in SCALINGS
        },
        rates,
        name="scalings_by_rate",
        title=f"Two scales of what adapters add, by learning rate at rank {rank}",
        caption=f"Each at the best of the rates tried on {_compared(cfg)}: {found}. "
        + _over_seeds(results),
        x_label="learning rate",
    )


def _compared(cfg: dict[str, Any]) -> str:
    """The target set whose numbers are told."""
    return cfg["both_scalings"][-1]


def _scaled(
    results: Results, targets: str, rank: int, scaling: str, rate: float | None = None
) -> Results:
    of = readings.adapted(results, targets, rank, scaling, rate)
    return readings.at_best(of, "perplexity")


def _scalings(
    results: Results, measured: dict[str, Callable[[str, float], Results]], xs, **look: Any
) -> Figure:
    """A chart of each target set with both scalings; measured: {scaling: (targets, x) -> rows}."""
    full = readings.at_best(results.select(method=FULL), "perplexity").values()
    panels = [
        (
            targets,
            [
                comparing.band(scaling, ((x, of(targets, x)) for x in xs))
                for scaling, of in measured.items()
            ],
        )
        for targets in results.config["both_scalings"]
    ]
    return grid(
        panels,
        y_label=_perplexity(results),
        log_x=True,
        x_ticks=xs,
        references=[(FULL, float(np.mean(full)))],
        **look,
    )


def learning_curves(results: Results) -> Figure:
    """Of each target set, with a mark where early stopping ends a run."""
    cfg = results.config
    full = results.select(method=FULL)
    panels, early, runs = [], 0, 0
    for targets in cfg["targets"]:
        series, marks = [], []
        for rank in cfg["ranks"]:
            of = readings.adapted(results, targets, rank)
            series.append(_curve(f"rank {rank}", of))
            stops = comparing.by_seed(of.select("stopped_at"))
            runs += len(stops)
            for seed, step in stops.items():
                if step < cfg["num_steps"]:
                    [loss] = [r.value for r in _losses(of, step).rows if r.seed == seed]
                    marks += [(step, loss), (step, math.nan)]  # a gap: no line between marks
                    early += 1
        series.append(_curve(FULL, full))
        if marks:
            series.append(Band("stopped early", *zip(*marks, strict=True), colour=STOPPED_COLOUR))
        panels.append((targets, series))
    return grid(
        panels,
        name="learning_curves",
        title="Learning curves on the new domain",
        caption=f"Validation loss from the first evaluation on, scale alpha/r. Early stopping "
        f"(patience {cfg['patience']} evaluations, min_delta {cfg['min_delta']:g}) ends {early} of "
        f"{runs} runs of LoRA before step {cfg['num_steps']}, each where it is marked. "
        + _over_seeds(results),
        x_label="step",
        y_label="nats/token",
    )


def _losses(of: Results, step: int) -> Results:
    return of.select("loss", domain=NEW, step=step)


def _curve(label: str, of: Results) -> Band:
    steps = dict.fromkeys(row.step for row in of.select("loss", domain=NEW).rows if row.step > 0)
    return comparing.band(label, ((step, _losses(of, step)) for step in steps))
