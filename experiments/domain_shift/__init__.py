"""A small model taken to another domain by a little text: what is gained there, what is lost here.

A base is trained on the bundled plays and fine-tuned on two files of Python's library, with and
without plays mixed in, and with LoRA. Early stopping watches files that are neither trained on nor
judged by. All texts are read as bytes, so a perplexity is that of a byte.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from experiments.base import BaseConfig
from experiments.checks import check_at_most, check_multiple, check_not_empty, check_positive
from experiments.comparing import band_by, over_seeds
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import (
    Interval,
    brief,
    mean_interval,
    paired_interval,
    ratio_interval,
)
from jaxlm.core.config import to_dict
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, Panel, grid, interval_band
from jaxlm.reports.study_report import Table

QUESTION = "What does fine-tuning on another domain cost on the old one, and what keeps it?"

BASE, FULL, LORA = "base", "new text only", "LoRA"  # method; the others mix in old rows
OLD, NEW, STOPPING = "old", "new", "stopping"  # domain
STOPPED, END = "at the stop", "at the end"  # when

SHARE_OF_GAIN = 0.8  # of full fine-tuning's, that counts as coming close to it
CHEAP = 0.05  # nats/byte that mixing may cost on the new domain

# Files that are trained on, then those that early stopping watches, then those that judge.
MODULES = (
    *("heapq.py", "textwrap.py"),
    *("csv.py", "gettext.py"),
    *("fractions.py", "uuid.py", "selectors.py"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The base, the new text, and how the base is taken there.

    modules: files of the standard library; of them the last `num_test_modules` judge and the
      `num_stopping_modules` before them are watched by early stopping.
    corpus_sha256: of their text, which differs between versions of Python; None: filled in.
    old_rows: rising; of the `batch_size` rows of a batch so many are old text.
    rank, alpha: of LoRA on all matrices of the blocks.
    full_lr, lora_lr: rates of AdamW, constant after a warmup, without weight decay.
    eval_batches: of `batch_size` windows of each domain.
    patience, min_delta: of early stopping, in evaluations and nats/byte.
    """

    scale: Literal["small", "default", "full"] = "default"
    base: BaseConfig = BaseConfig()
    modules: tuple[str, ...] = MODULES
    num_stopping_modules: int = 2
    num_test_modules: int = 3
    corpus_sha256: str | None = None
    old_rows: tuple[int, ...] = (1, 4)
    num_seeds: int = 5
    rank: int = 8
    alpha: float = 16.0
    full_lr: float = 4e-3
    lora_lr: float = 8e-3
    batch_size: int = 8
    num_steps: int = 400
    warmup_steps: int = 10
    eval_every: int = 20
    eval_batches: int = 8
    patience: int = 3
    min_delta: float = 0.001

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self, may_be_zero=("warmup_steps", "min_delta"))
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")
        if self.num_stopping_modules + self.num_test_modules >= len(self.modules):
            raise ValueError(
                f"num_stopping_modules={self.num_stopping_modules} and num_test_modules="
                f"{self.num_test_modules} must leave some of the {len(self.modules)} modules to "
                "train on"
            )
        rows = self.old_rows
        if len(rows) < 2 or rows != tuple(sorted({*rows})) or rows[-1] >= self.batch_size:
            raise ValueError(
                f"old_rows={rows} must be two or more, rising, below batch_size={self.batch_size}"
            )


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "base.num_steps": 150,
        "base.eval_every": 50,
        "num_steps": 200,
    },
    "full": {
        "base.num_layers": 6,
        "base.d_model": 256,
        "base.num_heads": 4,
        "base.context_length": 256,
        "base.batch_size": 64,
        "base.num_steps": 5000,
        "base.eval_every": 500,
        "base.peak_lr": 4e-3,
        "old_rows": (1, 2, 4, 8),
        "num_seeds": 8,
        "lora_lr": 2e-3,
        "full_lr": 5e-4,
        "batch_size": 16,
        "num_steps": 1000,
        "warmup_steps": 50,
        "eval_batches": 16,
    },
}

NOTES = [
    "The base is trained once: intervals are over the order of the texts and the first values of "
    "the adapters, and say nothing about other bases. Each evaluation reads the same windows.",
    "Every run goes on to the last step, and the rule of early stopping is applied to what was "
    "recorded on files that are neither trained on nor judged by. The learning rate is constant "
    "after its warmup, so a run that stops is the same run up to there.",
    "The rates are those of the study lora_rank, chosen there by sweeps on a longer text.",
    "With old rows in the batch, a step sees fewer rows of the new text; steps, not rows of new "
    "text, are equal.",
    "At scale=small a first run over 3 seeds left four of eleven verdicts open; since then it has "
    "5 seeds, with the same claims and thresholds.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """The base, all that trains its weights, and LoRA."""
    config = to_dict(cfg)
    return [{"trained": trained, "config": config} for trained in ("base", "weights", "adapters")]


def replayed(cfg: Config | Mapping[str, Any], old_rows: int) -> str:
    """The name of the method with so many old rows in a batch."""
    size = cfg.batch_size if isinstance(cfg, Config) else cfg["batch_size"]
    return f"{old_rows} of {size} rows old" if old_rows else FULL


def old_rows_of(cfg: Config, method: str) -> int:
    return next((n for n in cfg.old_rows if replayed(cfg, n) == method), 0)


def methods(results: Results) -> list[str]:
    cfg = results.config
    return [FULL, *(replayed(cfg, n) for n in cfg["old_rows"]), LORA]


def before(results: Results, domain: str) -> float:
    [loss] = results.select("loss", method=BASE, domain=domain).values()
    return loss


def after(results: Results, method: str, domain: str, when: str = STOPPED) -> dict[int, float]:
    """{seed: loss at what early stopping keeps, or at the last step}."""
    of = results.select(method=method)
    best = {row.seed: row.value for row in of.select("best_step").rows}
    last = results.config["num_steps"]
    return {
        row.seed: row.value
        for row in of.select("loss", domain=domain).rows
        if row.step == (best[row.seed] if when == STOPPED else last)
    }


def forgetting(results: Results, method: str, when: str = STOPPED) -> dict[int, float]:
    """{seed: loss on the old domain above that of the base}."""
    start = before(results, OLD)
    return {seed: loss - start for seed, loss in after(results, method, OLD, when).items()}


def perplexity_ratio(results: Results, method: str, domain: str) -> Interval:
    """After over before."""
    losses = list(after(results, method, domain).values())
    start = np.exp(before(results, domain))
    return ratio_interval(np.exp(losses), [start] * len(losses), over="seeds")


def claims(results: Results) -> list[Claim]:
    few, *_, many = (replayed(results.config, n) for n in results.config["old_rows"])
    whole = after(results, FULL, NEW)

    def difference(a: dict[int, float], b: dict[int, float]) -> Interval:
        return paired_interval([a[seed] for seed in b], [b[seed] for seed in b], over="seeds")

    def share(method: str) -> Interval:
        lost, of = forgetting(results, method), forgetting(results, FULL)
        return mean_interval([lost[seed] / of[seed] for seed in of])

    start, adapted = before(results, NEW), after(results, LORA, NEW)
    return [
        weigh(
            "Fine-tuned on the new text only, the model's perplexity on it falls to less than half "
            "of the base's",
            perplexity_ratio(results, FULL, NEW),
            below=0.5,
        ),
        weigh(
            "Fine-tuned on the new text only, its perplexity on the old one more than doubles, "
            "even with early stopping",
            perplexity_ratio(results, FULL, OLD),
            above=2.0,
        ),
        weigh(
            "Going on from the early stop to the last step makes the new domain worse, in "
            "nats/byte",
            difference(after(results, FULL, NEW, END), whole),
            above=0.0,
        ),
        weigh(
            "Going on from the early stop forgets more of the old domain, in nats/byte",
            difference(forgetting(results, FULL, END), forgetting(results, FULL)),
            above=0.0,
        ),
        weigh(
            f"With {few}, less than half is forgotten of what new text alone makes forget",
            share(few),
            below=0.5,
        ),
        weigh(
            f"With {few}, the new domain ends less than {CHEAP:g} nats/byte above new text only",
            difference(after(results, few, NEW), whole),
            below=CHEAP,
        ),
        weigh(
            f"With {many}, even less is forgotten than with {few}, in nats/byte",
            difference(forgetting(results, many), forgetting(results, few)),
            below=0.0,
        ),
        weigh(
            f"With {many}, the new domain ends worse than with new text only, in nats/byte",
            difference(after(results, many, NEW), whole),
            above=0.0,
        ),
        weigh(
            "LoRA forgets less than full fine-tuning on the same text, in nats/byte",
            difference(forgetting(results, LORA), forgetting(results, FULL)),
            below=0.0,
        ),
        weigh(
            f"LoRA reaches more than {SHARE_OF_GAIN:.0%} of what full fine-tuning gains on the new "
            "domain, in nats/byte",
            mean_interval([(start - adapted[s]) / (start - whole[s]) for s in whole]),
            above=SHARE_OF_GAIN,
        ),
        weigh(
            f"At equal text and no adapters, {few} forgets less than LoRA does, in nats/byte",
            difference(forgetting(results, few), forgetting(results, LORA)),
            below=0.0,
        ),
    ]


def plot(results: Results) -> list[Figure]:
    return [_perplexity_figure(results), _curve_figure(results)]


_TITLES = {NEW: "new domain: Python", OLD: "old domain: plays"}


def _perplexities(losses: dict[int, float]) -> Interval:
    return mean_interval(np.exp(list(losses.values())))


def _perplexity_figure(results: Results) -> Figure:
    names, panels = methods(results), []
    for domain, title in _TITLES.items():
        series = [
            interval_band(
                when,
                names,
                [_perplexities(after(results, name, domain, when)) for name in names],
                dashed=when == END,
            )
            for when in (STOPPED, END)
        ]
        start = mean_interval([float(np.exp(before(results, domain)))])
        series.append(interval_band("base, before", names, [start] * len(names)))
        panels.append(Panel(title, series))
    return grid(
        panels,
        name="perplexity_before_and_after",
        title="Perplexity before and after",
        caption=f"A byte's perplexity on text that was not trained on: {over_seeds(results)}. At "
        "the stop: what early stopping keeps. On the right, the distance to the base is what was "
        "forgotten.",
        x_label="trained on",
        y_label="perplexity of a byte",
        log_y=True,
        x_ticks=names,
    )


def _curve_figure(results: Results) -> Figure:
    panels = []
    for domain, title in _TITLES.items():
        series = []
        for name in methods(results):
            rows = results.select("loss", method=name, domain=domain)
            series.append(band_by(name, rows, "step"))
        panels.append(Panel(title, series))
    best = results.select("best_step", method=FULL).values()
    return grid(
        panels,
        name="loss_by_step",
        title="Loss on both domains while training goes on",
        caption=f"Text that is not trained on: {over_seeds(results)}; step 0 is the base. New text "
        f"only: early stopping keeps step {min(best):.0f} to {max(best):.0f}.",
        x_label="step",
        y_label="nats a byte",
    )


def tables(results: Results) -> list[Table]:
    start = [f"{np.exp(before(results, domain)):.2f}" for domain in (NEW, OLD)]
    rows = [[BASE, 0, "", *start, "", ""]]
    for name in methods(results):
        of = results.select(method=name)
        [size] = of.select("trainable").values()
        perplexities = [
            brief(_perplexities(after(results, name, domain, when)))
            for when in (STOPPED, END)
            for domain in (NEW, OLD)
        ]
        rows.append([name, int(size), float(np.mean(of.select("best_step").values()))])
        rows[-1] += perplexities
    header = ["trained on", "weights", "best step", "new", "old", "new, at the end"]
    title = (
        "Perplexity of a byte on both domains, at the step that early stopping keeps and at the "
        f"end, with 95% t intervals over {results.config['num_seeds']} seeds"
    )
    return [Table(title, [*header, "old, at the end"], rows)]
