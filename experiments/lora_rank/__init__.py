"""How many ranks LoRA needs to take a small model from plays to Python, and in which matrices.

A base is trained on the bundled plays and adapted to the source text of the Python standard
library, both read as bytes. Or the base is a model of others, `base.source`, and goes the other
way: it has read Python, and is adapted to the plays, in its own tokens.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from experiments import base
from experiments.checks import check_at_most, check_multiple, check_positive
from experiments.comparing import by_seed, difference, weigh_all
from experiments.library import MODULES
from experiments.lora_rank import figures, readings
from experiments.lora_rank.readings import BASE, FULL, LORA, OLD, OVER_R, OVER_SQRT_R, TARGETS
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED, Claim, weigh
from jaxlm.analysis.statistics import brief, mean_interval
from jaxlm.core.config import as_typed, to_dict
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure
from jaxlm.reports.study_report import Table

QUESTION = "Which LoRA rank is enough to carry a model to another domain, and in which matrices?"

SHARE_OF_GAIN = 0.8  # of full fine-tuning's, that counts as coming close to it
MERGED_TOLERANCE = 1e-5  # of merged weights against base plus adapters, as a share of the largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig(base.BaseConfig):
    """What is adapted: the transformer trained on the bundled plays, or another's.

    source: a GGUF file or Hugging Face folder in its place; of the other fields only context_length
      is read then. dtype: its matrices and tables are rounded to it, and LoRA holds them in it.
    """

    source: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The base, the text it is adapted to, and how.

    modules: files of the standard library, in order; the last `num_validation_modules` validate.
    corpus_sha256: of their text, which differs between versions of Python; None: filled in.
    targets: names out of TARGETS, the narrowest first and the widest last.
    both_scalings: those of them that are trained with alpha/sqrt(r), too; other_lrs: and, at the
      highest rank, at these rates beside lora_lr.
    ranks: rising. num_seeds: of the adapters' first values and of the order of the text.
    alpha: the scale of A B is alpha / r, or alpha / sqrt(r).
    lora_lr, full_lr: rates of AdamW, constant after a warmup, without weight decay.
    eval_batches: of `batch_size` windows each, spread over the validation text of each domain.
    patience, min_delta: of early stopping on the new domain, in evaluations and nats/token.
    merged_samples: of `context_length` tokens, on which merged weights are held against adapters.
    timed_calls: of the forward pass with the base's weights and with merged ones.
    """

    scale: Literal["small", "default", "full"] = "default"
    base: BaseConfig = BaseConfig()
    modules: tuple[str, ...] = MODULES
    num_validation_modules: int = 4
    corpus_sha256: str | None = None
    targets: tuple[str, ...] = tuple(TARGETS)
    both_scalings: tuple[str, ...] = ("all linear",)
    other_lrs: tuple[float, ...] = (2e-3, 4e-3, 1.6e-2)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    num_seeds: int = 5
    alpha: float = 16.0
    lora_lr: float = 8e-3
    full_lr: float = 4e-3
    batch_size: int = 8
    num_steps: int = 100
    warmup_steps: int = 10
    eval_every: int = 10
    eval_batches: int = 4
    patience: int = 3
    min_delta: float = 0.001
    merged_samples: int = 100
    timed_calls: int = 200

    def __post_init__(self):
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets={','.join(self.targets)} must be one or more of: {', '.join(TARGETS)}"
            )
        if set(self.both_scalings) - set(self.targets):
            raise ValueError(f"both_scalings={','.join(self.both_scalings)} must be among targets")
        if len(self.ranks) < 3 or self.ranks != tuple(sorted({*self.ranks})) or self.ranks[0] < 1:
            raise ValueError(
                f"ranks={as_typed(self.ranks)} must be three or more, rising, from 1 on"
            )
        if not 0 < self.num_validation_modules < len(self.modules):
            raise ValueError(
                f"num_validation_modules={self.num_validation_modules} must be at least 1 and "
                f"leave some of the {len(self.modules)} modules to train on"
            )
        if self.lora_lr in self.other_lrs or len(set(self.other_lrs)) < len(self.other_lrs):
            rates = as_typed(self.other_lrs)
            raise ValueError(f"other_lrs={rates} must differ, and from {self.lora_lr}")
        check_positive(self, may_be_zero=("warmup_steps", "min_delta"))
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "base.num_steps": 150,
        "base.eval_every": 50,
        "targets": ("q+v", "all linear"),
        "other_lrs": (),
        "ranks": (1, 8, 32),
        "num_seeds": 3,
        "num_steps": 50,
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
        "both_scalings": tuple(TARGETS),
        "num_seeds": 8,
        "other_lrs": (5e-4, 1e-3, 4e-3),
        "lora_lr": 2e-3,
        "full_lr": 5e-4,
        "batch_size": 16,
        "num_steps": 1000,
        "warmup_steps": 50,
        "eval_every": 50,
        "eval_batches": 16,
    },
}


def cells(cfg: Config) -> list[dict[str, Any]]:
    """The base, each target set with all its ranks, scalings and seeds, and full fine-tuning.

    With a base of others each rank is a cell, so that what it took is known, and is kept.
    """
    config = to_dict(cfg)
    adapted = [{"method": LORA, "targets": name} for name in cfg.targets]
    if cfg.base.source is not None:
        adapted = [{**cell, "rank": rank} for cell in adapted for rank in cfg.ranks]
    whole = [{"method": BASE}, *adapted, {"method": FULL}]
    return [{**cell, "config": config} for cell in whole]


def claims(results: Results) -> list[Claim]:
    cfg = results.config
    ranks, narrow, wide = cfg["ranks"], cfg["targets"][0], cfg["targets"][-1]
    low, some, high = ranks[0], ranks[len(ranks) // 2], ranks[-1]
    full, base = results.select(method=FULL), readings.of_base(results)

    def loss(targets: str, rank: int, scaling: str = OVER_R) -> Results:
        return readings.at_best(readings.adapted(results, targets, rank, scaling))

    lora, whole = by_seed(loss(wide, some)), by_seed(readings.at_best(full))
    found = [
        weigh(
            f"Rank {some} on {wide} layers reaches more than {SHARE_OF_GAIN:.0%} of what full "
            "fine-tuning gains over the frozen base, in nats/token on the new domain",
            mean_interval([(base - lora[seed]) / (base - whole[seed]) for seed in whole]),
            above=SHARE_OF_GAIN,
        ),
        _diminishing(wide, low, some, high, [by_seed(loss(wide, r)) for r in (low, some, high)]),
        weigh(
            f"LoRA of rank {some} on {wide} layers forgets less of the old domain than full "
            "fine-tuning, in nats/token at the best evaluation of the new one",
            difference(
                full.select("forgetting"),
                readings.adapted(results, wide, some).select("forgetting"),
            ),
            above=0.0,
        ),
        _merged(results),
    ]
    if narrow != wide:
        better = weigh_all(
            f"At every rank, adapting {wide} layers is better than adapting {narrow}",
            "Loss of the second less that of the first, nats/token",
            {f"rank {r}": difference(loss(narrow, r), loss(wide, r)) for r in ranks},
            above=0.0,
        )
        found.insert(1, better)
    if cfg["both_scalings"]:
        targets, rate = cfg["both_scalings"][-1], cfg["lora_lr"]
        text = f"At rank {high} on {targets} layers, alpha/sqrt(r) is better than alpha/r"
        found.append(
            weigh(
                f"{text} at the same alpha and learning rate of {rate:g}, in nats/token",
                difference(loss(targets, high), loss(targets, high, OVER_SQRT_R)),
                above=0.0,
            )
        )
        if cfg["other_lrs"]:
            found.append(_each_at_its_best(results, text, targets, high))
    return found


def _each_at_its_best(results: Results, text: str, targets: str, rank: int) -> Claim:
    """The better rate of each scaling is chosen by the mean over the very seeds compared."""
    best, chosen = {}, []
    for scaling in (OVER_R, OVER_SQRT_R):
        rate = readings.best_rate(results, targets, scaling)
        best[scaling] = readings.at_best(
            readings.adapted(results, targets, rank, scaling, peak_lr=rate)
        )
        chosen.append(f"{rate:g} for {scaling}")
    tried = ", ".join(f"{rate:g}" for rate in readings.rates(results.config))
    claim = weigh(
        f"{text}, each at its best learning rate out of {tried}, in nats/token",
        difference(best[OVER_R], best[OVER_SQRT_R]),
        above=0.0,
    )
    return claim._replace(evidence=f"{claim.evidence}; best {', '.join(chosen)}")


def _diminishing(
    targets: str, low: int, some: int, high: int, losses: list[dict[int, float]]
) -> Claim:
    a, b, c = (np.array([loss[seed] for seed in losses[0]]) for loss in losses)
    return weigh_all(
        f"On {targets} layers more rank helps, with diminishing returns: from {low} to {some} more "
        f"is gained than from {some} to {high}, and there still something",
        "Nats/token",
        {
            f"{low} to {some}": mean_interval(a - b),
            f"{some} to {high}": mean_interval(b - c),
            "the first less the second": mean_interval((a - b) - (b - c)),
        },
        above=0.0,
    )


def _merged(results: Results) -> Claim:
    parts, held = [], True
    compared = {
        "merged_product": "x W' against x W + s (x A) B",
        "merged_logits": "logits, merged beforehand against merged layer by layer",
    }
    for metric, what in compared.items():
        values = results.select(metric).values()
        held = held and all(value <= MERGED_TOLERANCE for value in values)
        parts.append(f"{max(values):.2g} ({what})")
    return Claim(
        f"Merged weights compute what base plus adapters do, to {MERGED_TOLERANCE:.0e} of the "
        f"largest value, in float32 on {results.config['merged_samples']} samples",
        SUPPORTED if held else NOT_SUPPORTED,
        f"Largest difference in {len(values)} sets of trained adapters: {', '.join(parts)}",
    )


def plot(results: Results) -> list[Figure]:
    return figures.plot(results)


def tables(results: Results) -> list[Table]:
    cfg = results.config
    header = ("trained", "scale", "rate", "rank", "perplexity", "bits/byte", "weights", "%")
    header += ("best step", "stopped at", "old perplexity")
    base = [
        *(BASE, "", "", ""),
        f"{readings.of_base(results, 'perplexity'):.2f}",
        readings.of_base(results, "bits_per_byte"),
        *(0, 0.0, "", ""),
        f"{readings.of_base(results, 'perplexity', OLD):.2f}",
    ]
    rows = [base]
    for targets in cfg["targets"]:
        for scaling, rate, rank in readings.settings(cfg, targets):
            of = readings.adapted(results, targets, rank, scaling, rate)
            rows.append([targets, scaling, rate, rank, *_measured(results, of)])
    rows.append([FULL, "", cfg["full_lr"], "", *_measured(results, results.select(method=FULL))])
    title = "At the best evaluation of the new domain, with what is trained and what is forgotten"
    return [Table(title, header, rows)]


def _measured(results: Results, of: Results) -> list[Any]:
    return [
        _interval(readings.at_best(of, "perplexity")),
        float(np.mean(readings.at_best(of, "bits_per_byte").values())),
        readings.num_trainable(of),
        100 * readings.share_trainable(results, of),
        float(np.mean(of.select("best_step").values())),
        float(np.mean(of.select("stopped_at").values())),
        _interval(readings.at_best(of, "perplexity", OLD)),
    ]


def _interval(of: Results) -> str:
    return brief(mean_interval(of.values())).replace(" ", "\N{NO-BREAK SPACE}")


NOTES = [
    "The base is trained once: intervals are over the first values of the adapters and the order "
    "of the text, and say nothing about other bases. Each evaluation reads the same windows, and "
    "the evaluation that early stopping keeps is chosen on them, too.",
    "Every run goes on to the last step, and the rule of early stopping is applied to what was "
    "recorded. The learning rate is constant after its warmup, so a run that stops is the same "
    "run up to there. Where it never stops, stopped at is the last step.",
    "For the base trained here, the rates of LoRA and of full fine-tuning were each chosen by a "
    "sweep at the default scale (0.002 to 0.032 and 0.001 to 0.008), LoRA's at rank 8 on all "
    "linear layers with alpha/r. They serve every rank and target set. The steps of alpha/sqrt(r) "
    "are larger by the root of the rank, so that which scale is better is a question of the rate, "
    "too. The comparison at other rates was added after the one at 0.008 had come out against "
    "alpha/sqrt(r); the best rates are chosen by the same runs that are compared.",
    "Adapters sit in the matrices of the blocks. Full fine-tuning trains embeddings, head and "
    "gains as well, those of the tokens that no text of its own training holds among them.",
    "In a model as narrow as the one trained here, rank 32 is half of full rank: the ranks are "
    "large shares of the width, and what they reach is not what they would reach in a wide model.",
    "A base of others (base.source) was trained by them, on text that is not known in full. Its "
    "old domain here is Python's library, its new one the plays, which it may have read as well. "
    "Its rates are those of the config, not chosen by a sweep; with the few steps that a CPU "
    "affords they decide how far each rank comes.",
]
