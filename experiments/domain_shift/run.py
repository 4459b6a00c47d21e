"""The base, and the populations that take it to the new text, with and without old rows."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import adapting, library
from experiments.domain_shift import (
    BASE,
    LORA,
    NEW,
    OLD,
    STOPPING,
    Config,
    old_rows_of,
    replayed,
)
from experiments.texts import lane_batches, plays
from jaxlm.analysis.early_stopping import early_stop
from jaxlm.core.arrays import Params
from jaxlm.core.config import from_dict
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch, Split, split_from_array
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.train.config import RunConfig
from jaxlm.train.population import stack_hypers, train_population
from jaxlm.train.program import hyper_values, make_program

DOMAINS = (OLD, NEW, STOPPING)  # in the order in which they are evaluated

resolve = library.resolve


def run_cell(cell: dict[str, Any]) -> list[Row]:
    """The rows of one cell; all its lanes are one population."""
    cfg = from_dict(Config, cell["config"])
    match cell["trained"]:
        case "base":
            return base_rows(cfg)
        case "weights":
            return tuned_rows(cfg, [replayed(cfg, old) for old in (0, *cfg.old_rows)], None)
        case "adapters":
            adapters = LoraConfig(rank=cfg.rank, alpha=cfg.alpha, targets=("all",))
            return tuned_rows(cfg, [LORA], adapters)
    raise ValueError(f"no cell has trained={cell['trained']!r}")


# Texts.


class NewTexts(NamedTuple):
    """Parts of the library as bytes: to train on, to stop by, and to judge by."""

    train: Split
    stopping: Split
    test: Split


@functools.cache
def new_texts(cfg: Config) -> NewTexts:
    texts = library.read_modules(cfg.modules)
    library.check_fingerprint(texts, cfg.corpus_sha256)
    test = len(texts) - cfg.num_test_modules
    stopping = test - cfg.num_stopping_modules
    parts = (texts[:stopping], texts[stopping:test], texts[test:])
    encode = plays("bytes").tokenizer.encode
    return NewTexts(*(split_from_array(encode("".join(part))) for part in parts))


def domains(cfg: Config) -> Batch:
    """[3, E, B, S]: windows of plays that nothing trained on, of the test text, and of the text
    that early stopping watches."""
    new = new_texts(cfg)
    return adapting.domain_windows(
        [plays("bytes").validation, new.test, new.stopping],
        num_batches=cfg.eval_batches,
        batch_size=cfg.batch_size,
        context_length=cfg.base.context_length,
    )


def mixed_inputs(cfg: Config, lanes: list[tuple[int, int]]) -> Callable[[int, int], Batch]:
    """(first, last) -> [P, steps, B, S], of lanes (rows of old text in each batch, seed)."""
    new, old = new_texts(cfg).train, plays("bytes").train

    def inputs(first, last):
        each = []
        for num_old, seed in lanes:
            parts = [
                lane_batches(
                    split, [seed], batch_size=rows, context_length=cfg.base.context_length
                )(first, last)
                for split, rows in ((new, cfg.batch_size - num_old), (old, num_old))
                if rows
            ]
            each.append(jax.tree.map(lambda *x: np.concatenate(x, axis=2), *parts))
        return jax.tree.map(lambda *x: np.concatenate(x), *each)

    return inputs


# Training.


class Base(NamedTuple):
    """model: its structure. params: its weights. losses: f64[3], of the domains."""

    model: TransformerConfig
    params: Params
    losses: np.ndarray


@functools.cache
def open_base(cfg: Config) -> Base:
    """Trains the base. A function of the config alone: another process gets the same weights."""
    model, trained = adapting.train_base(cfg.base, domains(cfg))
    _, scores = trained.evaluations[-1]
    losses = np.asarray(scores["loss"].compute(), np.float64)[0]
    return Base(model, adapting.lane_of(trained.state.params, 0), losses)


def base_rows(cfg: Config) -> list[Row]:
    base = open_base(cfg)
    return loss_rows({"method": BASE}, None, 0, base.losses)


def tuned_rows(cfg: Config, methods: list[str], adapters: LoraConfig | None) -> list[Row]:
    """Every method and seed, as the lanes of one population."""
    base = open_base(cfg)
    lanes = list(itertools.product(methods, range(cfg.num_seeds)))
    configs = [run_config(cfg, base.model, seed, adapters) for _, seed in lanes]
    program = make_program(configs[0], plays("bytes").tokenizer.token_bytes)
    start = {"start": base.params} if adapters is None else {"frozen": base.params}
    trained = train_population(
        program.init,
        program.step,
        seeds=[seed for _, seed in lanes],
        hypers=stack_hypers(map(hyper_values, configs)),
        inputs=mixed_inputs(cfg, [(old_rows_of(cfg, method), seed) for method, seed in lanes]),
        num_steps=cfg.num_steps,
        eval_every=cfg.eval_every,
        evaluate=adapting.evaluation(program),
        shared=domains(cfg),
        **start,
    )
    curves = [(0, np.tile(base.losses, (len(lanes), 1)))]
    curves += [
        (step, np.asarray(scores["loss"].compute(), np.float64))
        for step, scores in trained.evaluations
    ]
    size = float(count_params(program.specs))
    rows = []
    for lane, (method, seed) in enumerate(lanes):
        fields = {"method": method}
        if seed == 0:
            rows.append(Row(fields, None, None, "trainable", size, "parameters"))
        rows += run_rows(cfg, fields, seed, [(step, losses[lane]) for step, losses in curves])
    return rows


def run_config(
    cfg: Config, model: TransformerConfig, seed: int, adapters: LoraConfig | None
) -> RunConfig:
    peak_lr = cfg.full_lr if adapters is None else cfg.lora_lr
    return adapting.adaptation(cfg, model, seed, peak_lr, adapters)


def run_rows(
    cfg: Config, fields: dict[str, Any], seed: int, curve: list[tuple[int, np.ndarray]]
) -> list[Row]:
    """A run's losses [3] from step 0 on, and what early stopping makes of them."""
    rows = []
    for step, losses in curve:
        rows += loss_rows(fields, seed, step, losses)
    watched = [losses[DOMAINS.index(STOPPING)] for _, losses in curve]
    best, stopped = early_stop(watched, cfg.patience, cfg.min_delta)
    steps = {"best_step": curve[best][0], "stopped_at": curve[stopped][0]}
    return rows + [
        Row(fields, seed, None, metric, float(step), "steps") for metric, step in steps.items()
    ]


def loss_rows(fields: dict[str, Any], seed: int | None, step: int, losses) -> list[Row]:
    return [
        Row({**fields, "domain": domain}, seed, step, "loss", float(loss), "nats/token")
        for domain, loss in zip(DOMAINS, losses, strict=True)
    ]
