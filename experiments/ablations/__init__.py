"""A decoder against itself with one thing changed, each variant at its own best rate.

The base: deep and narrow, pre-norm, RMS norm, RoPE, SwiGLU; AdamW with warmup and cosine, gradients
clipped to 1; the characters of the bundled plays. A weight that two variants share starts from the
same value, because its key follows from its path, and both see the same text in the same order.
"""

import dataclasses
import math
from typing import Any, Literal

from experiments.checks import (
    check_at_most,
    check_multiple,
    check_not_empty,
    check_positive,
    check_rising,
)
from experiments.comparing import LEARNED, band_by, by_seed, difference, lowest_mean
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import Interval, brief, mean_interval
from jaxlm.core.results import Results
from jaxlm.reports.figures import Figure, interval_band, lines
from jaxlm.reports.study_report import Table

QUESTION = "Which parts of a small decoder does its loss depend on?"

BASE = "base"
Variant = Literal[
    "no norm",
    "post-norm",
    "no positions",
    "SiLU",
    "tied head",
    "QK norm",
    "half the batch",
    "twice the batch",
]
# What is claimed of each: that it ends with a higher loss than the base.
CLAIMS = {
    "no norm": "Without norms the loss ends higher",
    "post-norm": "With post-norm in place of pre-norm the loss ends higher",
    "no positions": "Without position encoding the loss ends higher",
    "SiLU": "With a SiLU feed-forward in place of SwiGLU, at equal parameters, the loss ends "
    "higher",
    "tied head": "With the head tied to the embedding the loss ends higher",
    "QK norm": "With normed queries and keys the loss ends higher",
    "half the batch": "With half the batch, at equal tokens, the loss ends higher",
    "twice the batch": "With twice the batch, at equal tokens, the loss ends higher",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The base and what is changed.

    d_ff: of SwiGLU and its three matrices; the SiLU feed-forward of two is half as wide again.
    batch_size, num_steps, warmup_steps, eval_every: of the base; half the batch has twice the
      steps, warmup included, and the other way round.
    peak_lrs: rising; of them each variant has its best.
    """

    scale: Literal["small", "default", "full"] = "default"
    variants: tuple[Variant, ...] = tuple(CLAIMS)
    peak_lrs: tuple[float, ...] = (4e-3, 1.2e-2, 3.6e-2, 1e-1)
    num_seeds: int = 5
    num_layers: int = 6
    d_model: int = 16
    num_heads: int = 2
    d_ff: int = 48
    context_length: int = 16
    batch_size: int = 16
    num_steps: int = 128
    warmup_steps: int = 16
    eval_every: int = 16
    eval_tokens: int = 4096

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        check_rising(self, "peak_lrs")
        for name in ("d_ff", "batch_size", "num_steps", "warmup_steps", "eval_every"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}={getattr(self, name)} must be even")
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "variants": ("no norm", "post-norm", "no positions"),
        "peak_lrs": (1.2e-2, 3.6e-2),
        "num_seeds": 3,
        "batch_size": 8,
    },
    "full": {
        "peak_lrs": (3e-4, 1e-3, 3e-3, 1e-2),
        "num_layers": 6,
        "d_model": 256,
        "num_heads": 4,
        "d_ff": 688,
        "context_length": 256,
        "batch_size": 32,
        "num_steps": 3000,
        "warmup_steps": 300,
        "eval_every": 300,
        "eval_tokens": 65536,
    },
}

NOTES = [
    "No variant is judged at the base's rate: of the rates given, each has the one of lowest mean "
    "final loss over the seeds. Where that is the lowest or highest of them (the table says so), "
    "a rate beyond might be better still.",
    "These are differences after a short training of a small model; they need not hold for a long "
    "training of a large one. Half the batch at equal tokens is also twice the updates.",
    "A run has diverged if its final loss is not finite, or not below that of the unigram "
    f"distribution by more than {LEARNED:g} nats/token.",
    "Norms of queries and keys add a few parameters, and a tied head takes some away.",
    "The verdicts explore, they do not confirm: the default base was 3 layers of width 32 at three "
    "rates and was changed after a first run, in which many best rates were the highest. In that "
    "run, with the same seeds, no norm, half the batch and QK norm were not supported, post-norm "
    "and SiLU inconclusive; no positions, tied head and twice the batch were supported in both.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each variant: a program, and a population of its rates and seeds."""
    return [_cell(cfg, variant) for variant in (BASE, *cfg.variants)]


def _cell(cfg: Config, variant: str) -> dict[str, Any]:
    sizes = ("num_layers", "d_model", "num_heads", "d_ff", "context_length")
    lengths = ("num_steps", "warmup_steps", "eval_every")
    changes = {
        "no norm": {"norm_placement": "none"},
        "post-norm": {"norm_placement": "post"},
        "no positions": {"positions": "none"},
        "SiLU": {"activation": "silu", "d_ff": 3 * cfg.d_ff // 2},
        "tied head": {"tied_head": True},
        "QK norm": {"qk_norm": True},
    }
    times = {"half the batch": 2.0, "twice the batch": 0.5}.get(variant, 1.0)
    return {
        "variant": variant,
        "model": {**{n: getattr(cfg, n) for n in sizes}, **changes.get(variant, {})},
        "batch_size": round(cfg.batch_size / times),
        **{name: round(getattr(cfg, name) * times) for name in lengths},
        "peak_lrs": list(cfg.peak_lrs),
        "num_seeds": cfg.num_seeds,
        "eval_tokens": cfg.eval_tokens,
    }


def _num_tokens(results: Results) -> int:
    """Of training, in every variant."""
    cfg = results.config
    return cfg["num_steps"] * cfg["batch_size"] * cfg["context_length"]


def at_best(results: Results, variant: str) -> Results:
    """The final losses of a variant at the rate of lowest mean: one row for each seed."""
    final = results.select("validation_loss", variant=variant, tokens=_num_tokens(results))
    [peak_lr] = lowest_mean(final, "peak_lr")
    return final.select(peak_lr=peak_lr)


def differences(results: Results) -> dict[str, Interval]:
    """{variant: final loss minus that of the base, paired by seed}."""
    base = at_best(results, BASE)
    return {v: difference(at_best(results, v), base) for v in results.config["variants"]}


def claims(results: Results) -> list[Claim]:
    """One for each variant: the change makes the final loss higher."""
    found = []
    for variant, interval in differences(results).items():
        claim = weigh(CLAIMS[variant], interval, above=0.0)
        found.append(claim._replace(evidence=f"Nats/token: {claim.evidence}"))
    return found


def _rate(best: Results) -> float:
    return best.rows[0].fields["peak_lr"]


def _settings(results: Results) -> str:
    """ "5 seeds, 51,200 tokens of training" """
    return f"{results.config['num_seeds']} seeds, {_num_tokens(results):,} tokens of training"


def plot(results: Results) -> list[Figure]:
    return [_difference_figure(results), _curve_figure(results), _rate_figure(results)]


def _difference_figure(results: Results) -> Figure:
    found = differences(results)
    order = sorted(found, key=lambda v: (math.isnan(found[v].mean), found[v].mean))
    label = "difference to the base"
    points = [interval_band(label, [v], [found[v]]) for v in order]
    base = mean_interval(list(by_seed(at_best(results, BASE)).values()))
    return lines(
        points,
        name="difference_to_base",
        title="Final validation loss minus that of the base",
        caption=f"95% t intervals, paired by seed; each at its best peak rate; "
        f"{_settings(results)}. The base: {base}. Above zero, the change does harm.",
        x_label="",
        y_label="nats a token",
        x_ticks=order,
        references=[(BASE, 0.0)],
        wide=True,
    )


def _curve_figure(results: Results) -> Figure:
    series, losses = [], results.select("validation_loss")
    for variant in (BASE, *results.config["variants"]):
        rate = _rate(at_best(results, variant))
        series.append(band_by(variant, losses.select(variant=variant, peak_lr=rate), "tokens"))
    unigram = results.select("unigram_loss").values()[0]
    known = [y for line in series for y in line.y if math.isfinite(y)]
    lowest = min([unigram, *known])
    return lines(
        series,
        name="loss_by_tokens",
        title="Validation loss by tokens seen",
        caption=f"Means with 95% t intervals over {results.config['num_seeds']} seeds, each "
        "variant at its best peak rate. A line that begins above the chart is cut off there.",
        x_label="tokens of training",
        y_label="nats a token",
        y_limits=(lowest - 0.1, unigram + 0.3),
        references=[("unigram", unigram)],
        wide=True,
    )


def _rate_figure(results: Results) -> Figure:
    """How much the choice of the rate matters."""
    final = results.select("validation_loss", tokens=_num_tokens(results))
    series = [
        band_by(v, final.select(variant=v), "peak_lr") for v in (BASE, *results.config["variants"])
    ]
    return lines(
        series,
        name="loss_by_rate",
        title="Final validation loss by peak learning rate",
        caption=f"Means with 95% t intervals over {results.config['num_seeds']} seeds; no "
        "point where a run is not finite. At the best rate of the base alone, a variant with "
        "another best rate would be judged by the wrong point.",
        x_label="peak learning rate",
        y_label="nats a token",
        log_x=True,
        x_ticks=results.config["peak_lrs"],
        wide=True,
    )


def tables(results: Results) -> list[Table]:
    found, rates = differences(results), results.config["peak_lrs"]
    diverged, rows = results.select("diverged"), []
    [size] = results.select("parameters", variant=BASE).values()
    for variant in (BASE, *results.config["variants"]):
        best = at_best(results, variant)
        edges = {rates[0]: " (lowest)", rates[-1]: " (highest)"} if len(rates) > 1 else {}
        [count] = results.select("parameters", variant=variant).values()
        runs = diverged.select(variant=variant).values()
        rows.append(
            [
                variant,
                int(count),
                f"{100 * (count / size - 1):+.1f}%",
                f"{_rate(best):g}{edges.get(_rate(best), '')}",
                brief(mean_interval(list(by_seed(best).values()))),
                "" if variant == BASE else brief(found[variant]),
                f"{sum(runs):.0f} of {len(runs)}",
            ]
        )
    header = ["variant", "parameters", "against the base", "best rate", "final loss"]
    title = (
        "The variants: final loss and difference to the base in nats/token, with 95% t intervals "
        f"over {results.config['num_seeds']} seeds"
    )
    return [Table(title, [*header, "difference", "runs that diverged"], rows)]
