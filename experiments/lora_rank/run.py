"""The base, the populations of adapters and full fine-tuning, and merged weights against both."""

import dataclasses
import functools
import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import adapting, library
from experiments.adapting import lane_of
from experiments.language import train_runs
from experiments.lora_rank import Config, readings
from experiments.texts import Text, lane_batches, plays, plays_as, standard_library
from jaxlm.analysis.early_stopping import early_stop
from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import FLAG, ConfigError, from_dict, to_dict
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch
from jaxlm.interop import pretrained
from jaxlm.models import lora, transformer
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import Tokenizer
from jaxlm.train.config import RunConfig
from jaxlm.train.population import Trained
from jaxlm.train.program import Program, group_by_structure, hyper_values, make_program

OLD, NEW = 0, 1  # places of the domains in what is evaluated

merge = jax.jit(lora.merge, static_argnames="scaling")  # by itself it is dozens of small programs


def run_cell(cell: dict[str, Any]) -> list[Row]:
    """The rows of one cell; all its lanes are one population."""
    cfg = from_dict(Config, cell["config"])
    match cell["method"]:
        case readings.BASE:
            return base_rows(cfg)
        case readings.LORA:
            return lora_rows(cfg, cell["targets"], cell.get("rank"))
        case readings.FULL:
            return full_rows(cfg)
    raise ValueError(f"no cell has method={cell['method']!r}")


def resolve(cfg: Config) -> Config:
    """`cfg` with the hash of the library's text; ConfigError where a source is none."""
    source = cfg.base.source
    if source is not None and not pretrained.is_pretrained(source):
        raise ConfigError(f"{FLAG}base.source={source}: is no Hugging Face folder and no GGUF file")
    return library.resolve(cfg)


# The two domains.


@functools.cache
def tokenizer_of(source: str | None) -> Tokenizer:
    """Of bytes, where the base is trained here."""
    return plays("bytes").tokenizer if source is None else pretrained.load_tokenizer(source)


@functools.cache
def the_plays(cfg: Config) -> Text:
    tokenizer = tokenizer_of(cfg.base.source)
    return plays("bytes") if cfg.base.source is None else plays_as(tokenizer)


def the_library(cfg: Config) -> Text:
    tokenizer = tokenizer_of(cfg.base.source)
    return standard_library(cfg.modules, cfg.num_validation_modules, cfg.corpus_sha256, tokenizer)


def new_domain(cfg: Config) -> Text:
    return the_library(cfg) if cfg.base.source is None else the_plays(cfg)


def old_domain(cfg: Config) -> Text:
    return the_plays(cfg) if cfg.base.source is None else the_library(cfg)


def validation(cfg: Config) -> Batch:
    """[2, E, B, S]: windows of the old domain first, then of the new one."""
    return adapting.domain_windows(
        [text.validation for text in (old_domain(cfg), new_domain(cfg))],
        num_batches=cfg.eval_batches,
        batch_size=cfg.batch_size,
        context_length=cfg.base.context_length,
    )


# The base.


class Scores(NamedTuple):
    """Of the lanes of a population; [..., 2]: the old and the new domain."""

    loss: np.ndarray  # nats/token
    bits_per_byte: np.ndarray

    def of(self, lane: int) -> "Scores":
        return Scores(self.loss[lane], self.bits_per_byte[lane])


class Base(NamedTuple):
    """What is adapted.

    model: its structure. params: its weights, float32. token_bytes: as of a tokenizer.
    curve: [(step of its own training, scores)], the last of them those of `params`.
    """

    model: TransformerConfig
    params: Params
    token_bytes: np.ndarray
    curve: list[tuple[int, Scores]]


@functools.cache
def open_base(cfg: Config) -> Base:
    """The base, trained or read; a function of the config, and of the file that it names.

    So another process gets the same weights.
    """
    base = cfg.base
    token_bytes = tokenizer_of(base.source).token_bytes
    if base.source is not None:
        model, params = pretrained.load_weights(base.source)
        model = dataclasses.replace(model, context_length=base.context_length)
        read = Base(model, rounded(params, model, base.dtype), token_bytes, [])
        return read._replace(curve=[(0, scores_alone(cfg, read))])
    model, trained = adapting.train_base(base, validation(cfg))
    curve = [(step, scores.of(0)) for step, scores in scores_of(trained)]
    params = rounded(lane_of(trained.state.params, 0), model, base.dtype)
    made = Base(model, params, token_bytes, curve)
    if base.dtype != "float32":  # the last scores were those before rounding
        made = made._replace(curve=[*curve[:-1], (curve[-1][0], scores_alone(cfg, made))])
    return made


def cast(w: Array, dtype: str) -> Array:
    return jnp.asarray(np.asarray(w, jnp.dtype(dtype)))  # by numpy: no program for each shape


def held(params: Params, model: TransformerConfig, dtype: str) -> Params:
    """Matrices and tables in `dtype`, as the frozen base is kept; gains and biases as they are."""
    return trees.map_with_path(
        lambda _, spec, w: w if spec.kind == "vector" else cast(w, dtype),
        transformer.param_specs(model),
        params,
    )


def rounded(params: Params, model: TransformerConfig, dtype: str) -> Params:
    """float32 whose matrices and tables hold no more than `dtype` can."""
    return jax.tree.map(lambda w: cast(w, "float32"), held(params, model, dtype))


def scores_alone(cfg: Config, base: Base) -> Scores:
    """Of the base, on the windows on which its adaptations are evaluated."""
    run = adaptation(cfg, base, 0, cfg.full_lr)
    program = make_program(run, base.token_bytes)
    state = jax.eval_shape(program.init, 0, hyper_values(run))
    state = state.replace(params=base.params, hypers=hyper_values(run))
    arrays = {"params": base.params, "hypers": state.hypers}

    @jax.jit
    def evaluate(arrays, domains):
        return adapting.evaluation(program)(state.replace(**arrays), domains)

    values = evaluate(arrays, validation(cfg))
    return Scores(*(np.float64(values[name].compute()) for name in Scores._fields))


def base_rows(cfg: Config) -> list[Row]:
    base, fields = open_base(cfg), {"method": readings.BASE}
    size = count_params(transformer.param_specs(base.model))
    rows = [Row(fields, None, None, "parameters", size, "parameters")]
    for step, scores in base.curve:
        rows += score_rows(fields, cfg.base.seed, step, scores, "base_")
    return rows + score_rows(fields, None, 0, base.curve[-1][1], "best_")


# Adaptation.


def lora_rows(cfg: Config, targets: str, rank: int | None = None) -> list[Row]:
    """All ranks, scalings, rates and seeds of one target set, as one population; or of one rank."""
    base = open_base(cfg)
    settings = readings.settings(to_dict(cfg), targets)
    settings = [each for each in settings if rank in (None, each.rank)]
    lanes = list(itertools.product(settings, range(cfg.num_seeds)))
    runs = [
        adaptation(
            cfg,
            base,
            seed,
            peak_lr,
            LoraConfig(
                rank=rank,
                # alpha/sqrt(r) is alpha/r with another alpha: a number, and so the same program.
                alpha=cfg.alpha * (math.sqrt(rank) if scaling == readings.OVER_SQRT_R else 1),
                targets=readings.TARGETS[targets],
            ),
        )
        for (scaling, peak_lr, rank), seed in lanes
    ]
    [group] = group_by_structure(runs)
    program = make_program(group.cfg, base.token_bytes, group.traced)
    frozen = held(base.params, base.model, cfg.base.dtype)
    trained = train(cfg, runs, program, new_domain(cfg), frozen=frozen)
    scores, rows = scores_of(trained), []
    for lane, (setting, seed) in enumerate(lanes):
        fields = {"method": readings.LORA, "targets": targets, **setting._asdict()}
        rows += adaptation_rows(cfg, base, fields, seed, [(n, s.of(lane)) for n, s in scores])
        if seed == 0:
            specs = lora.adapter_specs(transformer.param_specs(base.model), runs[lane].lora)
            rows.append(Row(fields, None, None, "trainable", count_params(specs), "parameters"))
            adapters = lane_of(trained.state.params, lane)
            for metric, value in merged_differences(cfg, base, adapters, runs[lane].lora).items():
                rows.append(Row(fields, seed, cfg.num_steps, metric, value, "share of the largest"))
    return rows


def full_rows(cfg: Config) -> list[Row]:
    """Every weight of the base trained, for each seed."""
    base, fields = open_base(cfg), {"method": readings.FULL, "peak_lr": cfg.full_lr}
    runs = [adaptation(cfg, base, seed, cfg.full_lr) for seed in range(cfg.num_seeds)]
    program = make_program(runs[0], base.token_bytes)
    trained = train(cfg, runs, program, new_domain(cfg), start=base.params)
    rows = [Row(fields, None, None, "trainable", count_params(program.specs), "parameters")]
    scores = scores_of(trained)
    for seed in range(cfg.num_seeds):
        rows += adaptation_rows(cfg, base, fields, seed, [(n, s.of(seed)) for n, s in scores])
    return rows


def adaptation(
    cfg: Config, base: Base, seed: int, peak_lr: float, adapters: LoraConfig | None = None
) -> RunConfig:
    return adapting.adaptation(cfg, base.model, seed, peak_lr, adapters)


def train(cfg: Config, runs: Sequence[RunConfig], program: Program, text: Text, **more) -> Trained:
    """The runs, which share the program, as one population; both domains are evaluated.

    Args:
      more: the weights that are frozen, or those to start from, as for `train_population`.
    """
    more |= {"evaluate": adapting.evaluation(program), "shared": validation(cfg)}
    return train_runs(text, runs, program, **more)


def scores_of(trained: Trained) -> list[tuple[int, Scores]]:
    """[(step, scores [P, 2])]."""
    return [
        (step, Scores(*(np.float64(values[name].compute()) for name in Scores._fields)))
        for step, values in trained.evaluations
    ]


def adaptation_rows(
    cfg: Config, base: Base, fields: dict[str, Any], seed: int, curve: list[tuple[int, Scores]]
) -> list[Row]:
    """A run's curve, from the base on, and what early stopping makes of it."""
    curve = [(0, base.curve[-1][1]), *curve]
    rows = []
    for step, scores in curve:
        rows += score_rows(fields, seed, step, scores)
    losses = [scores.loss[NEW] for _, scores in curve]
    best, stopped = early_stop(losses, cfg.patience, cfg.min_delta)
    step, scores = curve[best]
    forgotten = scores.loss[OLD] - base.curve[-1][1].loss[OLD]
    return [
        *rows,
        *score_rows(fields, seed, step, scores, "best_"),
        Row(fields, seed, step, "forgetting", forgotten, "nats/token"),
        Row(fields, seed, None, "best_step", step, "steps"),
        Row(fields, seed, None, "stopped_at", curve[stopped][0], "steps"),
    ]


def score_rows(
    fields: dict[str, Any], seed: int | None, step: int, scores: Scores, prefix: str = ""
) -> list[Row]:
    rows = []
    for domain, loss, bits in zip((readings.OLD, readings.NEW), *scores, strict=True):
        for metric, value, unit in (
            ("loss", loss, "nats/token"),
            ("perplexity", np.exp(loss), "1"),
            ("bits_per_byte", bits, "bits/byte"),
        ):
            named = {**fields, "domain": domain}
            rows.append(Row(named, seed, step, prefix + metric, float(value), unit))
    return rows


# Merged weights.


def merged_differences(
    cfg: Config, base: Base, adapters: Params, chosen: LoraConfig
) -> dict[str, float]:
    """How far merged weights are from base plus adapters in float32, on cfg.merged_samples samples.

    merged_product: greatest |x W' - (x W + s (x A) B)| over all adapted matrices and layers, x
      normal, as a share of the greatest |x W'| of that matrix.
    merged_logits: greatest difference of the logits of samples of the new domain, as a share of
      the greatest logit.
    """
    hypers = lora.hyper_values(chosen)
    merged = merge(base.params, adapters, hypers, scaling=chosen.scaling)
    return {
        "merged_product": product_difference(cfg, base, adapters, merged, chosen),
        "merged_logits": logits_difference(cfg, base, adapters, merged, hypers),
    }


def product_difference(
    cfg: Config, base: Base, adapters: Params, merged: Params, chosen: LoraConfig
) -> float:
    """See `merged_differences`. The two paths are numpy's, with the adapters cut to their rank."""
    weights, adapters, merged = (
        {path: np.asarray(x) for path, x in trees.flatten(tree).items()}
        for tree in (base.params, adapters, merged)
    )
    rng, worst = np.random.default_rng(0), 0.0
    scale = np.float32(chosen.alpha / chosen.rank)
    for path, a in adapters.items():
        if not path.endswith(lora.A):
            continue
        target = path.removesuffix(f"{trees.SEPARATOR}{lora.A}")
        b = adapters[f"{target}{trees.SEPARATOR}{lora.B}"]
        layers, num_in = len(a), math.prod(a.shape[1:-1])
        a = a.reshape(layers, num_in, -1)[..., : chosen.rank]
        b = b.reshape(layers, b.shape[1], -1)[:, : chosen.rank]
        w, whole = (x[target].reshape(layers, num_in, -1) for x in (weights, merged))
        x = rng.normal(size=(cfg.merged_samples, num_in)).astype(np.float32)
        for layer in range(layers):
            apart = x @ w[layer] + scale * ((x @ a[layer]) @ b[layer])
            together = x @ whole[layer]
            worst = max(worst, np.max(np.abs(together - apart)) / np.max(np.abs(together)))
    return float(worst)


def logits_difference(
    cfg: Config, base: Base, adapters: Params, merged: Params, hypers: dict[str, float]
) -> float:
    """See `merged_differences`."""
    tokens = lane_batches(
        new_domain(cfg).validation,
        [adapting.WINDOWS_SEED],
        batch_size=cfg.merged_samples,
        context_length=base.model.context_length,
    )(0, 1).tokens[0, 0]
    apart, together = _both_logits(base.model)(base.params, adapters, merged, hypers, tokens)
    return float(np.max(np.abs(together - apart)) / np.max(np.abs(together)))


@functools.cache
def _both_logits(model: TransformerConfig) -> Callable[..., Any]:
    @jax.jit
    def both_logits(base, adapters, merged, hypers, tokens):
        apart = lora.attach(base, adapters, hypers, LoraConfig().scaling)
        with jax.default_matmul_precision("highest"):  # float32 on every device
            return tuple(transformer.forward(w, tokens, model) for w in (apart, merged))

    return both_logits


def measure(cfg: Config) -> list[dict[str, Any]]:
    """What the forward pass takes with the base's weights and with merged ones, in turns.

    The ratio is that of the two calls of a pair, so what else the machine does cancels in it.
    """
    base = open_base(cfg)
    chosen = LoraConfig(rank=cfg.ranks[-1], alpha=cfg.alpha, targets=(lora.ALL,))
    specs = lora.adapter_specs(transformer.param_specs(base.model), chosen)
    rng = np.random.default_rng(0)
    adapters = trees.map_with_path(lambda _, s: np.float32(rng.normal(size=s.shape)), specs)
    merged = merge(base.params, adapters, lora.hyper_values(chosen), scaling=chosen.scaling)
    tokens = validation(cfg).tokens[0, 0]
    forward = jax.jit(functools.partial(transformer.forward, cfg=base.model))
    weights = {"base": base.params, "merged": merged}
    programs = {name: forward.lower(params, tokens).as_text() for name, params in weights.items()}
    seconds: dict[str, list[float]] = {name: [] for name in weights}
    for call in range(-1, cfg.timed_calls):  # the first pair compiles
        for name in sorted(weights, reverse=call % 2 == 1):  # each comes first in half of the pairs
            started = time.perf_counter()
            forward(weights[name], tokens).block_until_ready()
            if call >= 0:
                seconds[name].append(time.perf_counter() - started)
    return [
        {
            "weights": name,
            "calls": cfg.timed_calls,
            "median_ms": 1e3 * statistics.median(values),
            "median_ratio_to_base": statistics.median(np.divide(values, seconds["base"]).tolist()),
            "sha256_of_the_program": hashlib.sha256(programs[name].encode()).hexdigest()[:16],
        }
        for name, values in seconds.items()
    ]
