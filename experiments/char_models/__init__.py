"""Character models of one size on one text, from counting to attention.

A bigram and a 5-gram are counted. The MLP of Bengio, RNN, GRU, LSTM, a temporal convolution and a
transformer are trained on the same batches with AdamW at a constant rate after a warmup, their
gradients clipped to 1; each has the rate of the grid whose runs end lowest on the validation
part. What is reported is of a third part of the text, on which nothing was chosen. No prediction
reads further back than the beginning of its row.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from experiments.checks import (
    check_at_most,
    check_multiple,
    check_not_empty,
    check_positive,
    check_rising,
)
from experiments.comparing import band, difference, lowest_mean
from jaxlm.analysis.claims import Claim, weigh
from jaxlm.analysis.statistics import Interval, brief, mean_interval
from jaxlm.core.results import Results, Row
from jaxlm.reports.figures import Band, Figure, interval_band, lines
from jaxlm.reports.study_report import Table

QUESTION = "What do gates, convolutions and attention buy a character model of one size?"

Model = Literal["mlp", "rnn", "gru", "lstm", "tcn", "transformer"]
NAMES = {
    "bigram": "bigram",
    "five_gram": "5-gram",
    "mlp": "MLP",
    "rnn": "RNN",
    "gru": "GRU",
    "lstm": "LSTM",
    "tcn": "TCN",
    "transformer": "transformer",
}
COUNTED = {"bigram": 2, "five_gram": 5}  # tokens of their longest n-gram
SAMPLE_ROWS = 64  # text rows over which a gradient's reach is averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """path: a UTF-8 file or folder; none: the bundled plays. corpus_sha256: filled in, and checked.

    num_parameters: of every trained model, as near as whole widths come.
    far: how many tokens back a gradient's reach is judged at.
    """

    scale: Literal["small", "default", "full"] = "default"
    path: str | None = None
    corpus_sha256: str | None = None
    models: tuple[Model, ...] = ("mlp", "rnn", "gru", "lstm", "tcn", "transformer")
    num_parameters: int = 30_000
    peak_lrs: tuple[float, ...] = (2e-3, 5e-3, 1.25e-2, 3e-2)
    num_seeds: int = 5
    context_length: int = 64
    batch_size: int = 16
    num_steps: int = 1000
    warmup_steps: int = 50
    eval_every: int = 100
    eval_tokens: int = 16_384
    far: int = 32
    sample_tokens: int = 160

    def __post_init__(self):
        check_not_empty(self)
        check_positive(self)
        check_rising(self, "peak_lrs")
        check_multiple(self, "num_steps", "eval_every")
        check_at_most(self, "warmup_steps", "num_steps")
        if self.far >= self.context_length:
            raise ValueError(f"far={self.far} must be below context_length={self.context_length}")


SCALES: dict[str, dict[str, Any]] = {
    "small": {
        "num_parameters": 20_000,
        "peak_lrs": (5e-3, 1.25e-2, 3e-2, 7e-2),
        "num_seeds": 3,
        "num_steps": 400,
        "warmup_steps": 20,
        "eval_every": 40,
        "eval_tokens": 8192,
    },
    "full": {
        "num_parameters": 3_000_000,
        "peak_lrs": (5e-4, 1e-3, 2e-3),
        "context_length": 256,
        "batch_size": 64,
        "num_steps": 10_000,
        "warmup_steps": 500,
        "eval_every": 1000,
        "eval_tokens": 262_144,
        "far": 128,
    },
}

NOTES = [
    "The counted models have counted the whole training part; the trained ones have seen as many "
    "characters as the captions say.",
    "Equal parameters: widths as near to the number as whole ones come, the same batches, as many "
    "of them. Equal compute: the training FLOPs of the cheapest of these runs; a model that costs "
    "more a token has seen fewer, and its loss there is read between two evaluations on a straight "
    "line. FLOPs are 6 for each weight that a token is multiplied with and 12 N S H Dh for "
    "attention; looking up, norms and softmax are not counted, and a bigram of counts costs none.",
    "These are small models and short trainings at a rate that never decays; the order need not "
    "hold for large ones. An RNN's steps follow one another, so on a GPU its FLOPs take longer.",
    "The gradient's reach: |d loss[t] / d embedding[t - k]| of the last position t of rows of the "
    f"test text, the mean over {SAMPLE_ROWS} rows, as a share of that at k = 0.",
]


def cells(cfg: Config) -> list[dict[str, Any]]:
    """One for each model that is counted, one for each that is trained."""
    text = {"path": cfg.path, "corpus_sha256": cfg.corpus_sha256}
    text |= {"context_length": cfg.context_length, "eval_tokens": cfg.eval_tokens}
    text |= {"sample_tokens": cfg.sample_tokens}
    names = ("num_parameters", "num_seeds", "batch_size", "num_steps", "warmup_steps", "eval_every")
    trained = {name: getattr(cfg, name) for name in names}
    trained["peak_lrs"] = list(cfg.peak_lrs)
    return [{"model": name, "order": order, **text} for name, order in COUNTED.items()] + [
        {"model": model, **text, **trained} for model in cfg.models
    ]


def at_best(results: Results, model: str, metric: str) -> Results:
    """A model's rows of a metric at the rate that the validation part chose."""
    final = results.select("validation_loss", model=model, step=results.config["num_steps"])
    [peak_lr] = lowest_mean(final, "peak_lr")
    return results.select(metric, model=model, peak_lr=peak_lr)


def _bits(results: Results) -> Results:
    """Losses in nats as bits."""
    rows = [row._replace(value=row.value / math.log(2)) for row in results.rows]
    return dataclasses.replace(results, rows=tuple(rows))


def at_equal_tokens(results: Results, model: str) -> Results:
    """Bits a character on the test part after all steps: one row for each seed."""
    final = at_best(results, model, "test_loss").select(step=results.config["num_steps"])
    return _bits(final)


def flops_per_token(results: Results, model: str) -> float:
    [value] = results.select("flops_per_token", model=model).values()
    return value


def steps_of_compute(results: Results, model: str) -> float:
    """After how many steps a model has cost as much as the cheapest does in all."""
    cheapest = min(flops_per_token(results, m) for m in results.config["models"])
    return results.config["num_steps"] * cheapest / flops_per_token(results, model)


def at_equal_compute(results: Results, model: str) -> Results:
    """As `at_equal_tokens`, where training has cost what the cheapest model's does.

    NaN where that is before the first evaluation.
    """
    step, rows = steps_of_compute(results, model), []
    for (seed,), group in at_best(results, model, "test_loss").by("seed").items():
        steps, losses = [row.step for row in group.rows], group.values()
        loss = float(np.interp(step, steps, losses, left=math.nan))
        rows.append(Row(group.rows[0].fields, seed, None, "test_loss", loss, "nats/token"))
    return _bits(dataclasses.replace(results, rows=tuple(rows)))


def reach(results: Results, model: str, distance: int) -> Results:
    """log10 of the gradient's reach, one row for each seed."""
    rows = at_best(results, model, "gradient_reach").select(distance=distance).rows
    rows = [row._replace(value=math.log10(max(row.value, 1e-45))) for row in rows]
    return dataclasses.replace(results, rows=tuple(rows))


def counted_bits(results: Results, model: str) -> float:
    [loss] = results.select("test_loss", model=model).values()
    return loss / math.log(2)


def claims(results: Results) -> list[Claim]:
    cfg, found = results.config, []
    have = set(cfg["models"])

    def compare(text, a, b, pick):
        if {a, b} <= have:
            interval = difference(pick(results, a), pick(results, b))
            claim = weigh(text, interval, below=0.0)
            found.append(claim._replace(evidence=f"Bits a character: {claim.evidence}"))

    tokens, compute = at_equal_tokens, at_equal_compute
    compare("At equal parameters a GRU ends below an RNN", "gru", "rnn", tokens)
    compare("At equal parameters an LSTM ends below an RNN", "lstm", "rnn", tokens)
    compare("At equal parameters a GRU ends below an MLP of 8 characters", "gru", "mlp", tokens)
    compare("At equal parameters a TCN ends below an LSTM (Bai et al. 2018)", "tcn", "lstm", tokens)
    compare("At equal parameters a transformer ends below a GRU", "transformer", "gru", tokens)
    compare("At equal compute a transformer ends below a GRU", "transformer", "gru", compute)
    for model in ("mlp", "transformer"):
        if model in have:
            five = counted_bits(results, "five_gram")
            bits = mean_interval([v - five for v in at_equal_tokens(results, model).values()])
            text = f"The {NAMES[model]} ends below the counted 5-gram with Kneser-Ney smoothing"
            claim = weigh(text, bits, below=0.0)
            found.append(claim._replace(evidence=f"Bits a character: {claim.evidence}"))
    for gated in ("gru", "lstm"):
        if {gated, "rnn"} <= have:
            interval = difference(
                reach(results, gated, cfg["far"]), reach(results, "rnn", cfg["far"])
            )
            text = (
                f"The gradient of a trained {NAMES[gated]} reaches {cfg['far']} characters back "
                "more strongly than that of an RNN"
            )
            claim = weigh(text, interval, above=0.0)
            found.append(claim._replace(evidence=f"Powers of ten: {claim.evidence}"))
    return found


def plot(results: Results) -> list[Figure]:
    return [_bits_figure(results), _curve_figure(results), _reach_figure(results)]


def _settings(results: Results) -> str:
    cfg = results.config
    tokens = cfg["num_steps"] * cfg["batch_size"] * cfg["context_length"]
    return f"{cfg['num_seeds']} seeds, {tokens:,} characters of training"


def _bits_figure(results: Results) -> Figure:
    models = results.config["models"]
    found = {m: mean_interval(at_equal_tokens(results, m).values()) for m in models}
    order = sorted(models, key=lambda m: -found[m].mean)
    shown = [NAMES[m] for m in order]
    costs = [mean_interval(at_equal_compute(results, m).values()) for m in order]
    return lines(
        [
            interval_band("equal parameters and characters", shown, [found[m] for m in order]),
            interval_band("equal parameters and compute", shown, costs, dashed=True),
        ],
        name="bits_by_model",
        title="Bits a character on text that nothing was chosen on",
        caption=f"Means with 95% t intervals; {_settings(results)}. Below is better. Hollow: what "
        "each had reached for the training FLOPs of the cheapest.",
        x_label="",
        y_label="bits a character",
        x_ticks=shown,
        references=[(NAMES[m], counted_bits(results, m)) for m in COUNTED],
        wide=True,
    )


def _curve_figure(results: Results) -> Figure:
    cfg, series = results.config, []
    per_step = cfg["batch_size"] * cfg["context_length"]
    for model in cfg["models"]:
        cost = flops_per_token(results, model) * per_step
        groups = _bits(at_best(results, model, "test_loss")).by("step").items()
        series.append(band(NAMES[model], ((step * cost, group) for (step,), group in groups)))
    return lines(
        series,
        name="bits_by_compute",
        title="Bits a character by the FLOPs of training",
        caption=f"Each at its own best rate; means with 95% t intervals over {cfg['num_seeds']} "
        "seeds.",
        x_label="training FLOPs",
        y_label="bits a character",
        log_x=True,
        references=[(NAMES[m], counted_bits(results, m)) for m in COUNTED],
        wide=True,
    )


def _reach_figure(results: Results) -> Figure:
    series = []
    for model in results.config["models"]:
        groups = at_best(results, model, "gradient_reach").by("distance").items()
        found = [(k, mean_interval(g.values())) for (k,), g in groups if k > 0]
        found = [(k, interval) for k, interval in found if interval.mean > 0]
        low = [max(i.low, i.mean / 10) for _, i in found]  # a t interval may pass zero
        x, means, high = zip(*((k, i.mean, i.high) for k, i in found), strict=True)
        series.append(Band(label=NAMES[model], x=x, y=means, low=low, high=high))
    return lines(
        series,
        name="gradient_reach",
        title="How far back the loss of one character reaches",
        caption="|d loss[t] / d embedding[t - k]| as a share of that at k = 0, after training; "
        f"means with 95% t intervals over {results.config['num_seeds']} seeds. The MLP reads 8 "
        "characters and no more, the TCN what its layers cover.",
        x_label="k, characters back",
        y_label="share of the gradient at k = 0",
        log_y=True,
        wide=True,
    )


def tables(results: Results) -> list[Table]:
    return [_model_table(results), _sample_table(results)]


def _perplexity(bits: Results) -> Interval:
    return mean_interval([2**value for value in bits.values()])


def _model_table(results: Results) -> Table:
    rates, rows = results.config["peak_lrs"], []
    for model in COUNTED:
        bits = counted_bits(results, model)
        [size] = results.select("parameters", model=model).values()
        rows.append([NAMES[model], "", int(size), "", "", f"{2**bits:.3f}", f"{bits:.3f}", ""])
    for model in results.config["models"]:
        [size], [width] = (
            results.select(name, model=model).values() for name in ("parameters", "width")
        )
        tokens, compute = at_equal_tokens(results, model), at_equal_compute(results, model)
        rate = tokens.rows[0].fields["peak_lr"]
        edges = {rates[0]: " (lowest)", rates[-1]: " (highest)"} if len(rates) > 1 else {}
        rows.append(
            [
                NAMES[model],
                int(width),
                int(size),
                f"{flops_per_token(results, model) / 1e6:.3f}",
                f"{rate:g}{edges.get(rate, '')}",
                brief(_perplexity(tokens)),
                brief(mean_interval(tokens.values())),
                brief(mean_interval(compute.values())),
            ]
        )
    header = ["model", "width", "parameters", "MFLOP a token", "best rate"]
    header += ["perplexity", "bits a character", "at equal compute"]
    title = (
        "The models on the test part, at equal parameters and characters, with 95% t intervals "
        f"over {results.config['num_seeds']} seeds; of the counted ones the parameters are n-grams"
    )
    return Table(title, header, rows)


def _sample_table(results: Results) -> Table:
    rows = [
        [NAMES[row.fields["model"]], row.fields["text"].replace("\n", " / ")]
        for row in results.select("sample").rows
    ]
    return Table("Text of seed 0, at temperature 0.8", ["model", "text"], rows)
