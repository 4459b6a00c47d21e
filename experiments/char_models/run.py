"""Counts or trains one model, scores it, follows its gradient back and lets it write."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.char_models import SAMPLE_ROWS
from experiments.language import train_runs
from experiments.texts import Text, validation_batches
from jaxlm.analysis import flops
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import FLAG, ConfigError, apply_overrides
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch, Split, split_from_array
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.decode.generate import generate
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.models import kinds, ngram
from jaxlm.models.api import LanguageModel
from jaxlm.models.scoring import score_targets
from jaxlm.tokenizers import TokenizerConfig, train_tokenizer
from jaxlm.train.config import RunConfig
from jaxlm.train.program import group_by_structure, make_program

_ROWS = 16  # windows of one batch of evaluation
_WIDEST = 2**16


class Parts(NamedTuple):
    """A text in three: to train on, to choose a rate on, to report."""

    text: Text
    test: Split


@functools.cache
def open_parts(path: str | None) -> Parts:
    """The characters of a text: 80% to train, 10% to choose on, 10% to report."""
    corpus = open_corpus(DataConfig(path=path))
    text = "\n".join("".join(pieces) for pieces in corpus.documents())
    tokenizer = train_tokenizer(TokenizerConfig(kind="characters"), [text])
    ids = tokenizer.encode(text)
    train, validation, test = np.split(ids, [int(0.8 * len(ids)), int(0.9 * len(ids))])
    splits = (split_from_array(part) for part in (train, validation, test))
    train, validation, test = splits
    return Parts(Text(tokenizer, train, validation, corpus.fingerprint), test)


def resolve(cfg: Any) -> Any:
    """Fills in the hash of the text, or checks it."""
    found = open_corpus(DataConfig(path=cfg.path)).fingerprint
    if cfg.corpus_sha256 not in (None, found):
        raise ConfigError(
            f"{FLAG}corpus_sha256={cfg.corpus_sha256}: the text has changed ({found}); put it "
            f"back, or set {FLAG}corpus_sha256=none and a new --workdir"
        )
    return dataclasses.replace(cfg, corpus_sha256=found)


def run_cell(cell: dict[str, Any]) -> list[Row]:
    return count(cell) if "order" in cell else train(cell)


def _batches(split: Split, cell: dict[str, Any]) -> Batch:
    num_batches = max(1, cell["eval_tokens"] // (_ROWS * cell["context_length"]))
    return validation_batches(
        split, num_batches=num_batches, batch_size=_ROWS, context_length=cell["context_length"]
    )


def count(cell: dict[str, Any]) -> list[Row]:
    """An n-gram model, from the whole training part."""
    parts, name = open_parts(cell["path"]), {"model": cell["model"]}
    ids = parts.text.train.take(np.arange(parts.text.train.num_tokens))
    tokenizer = parts.text.tokenizer
    model, params = ngram.fit(ngram.NgramConfig(order=cell["order"]), ids, tokenizer.vocab_size)
    evaluate = make_evaluator(model, token_bytes=tokenizer.token_bytes)
    stacked = _batches(parts.test, cell)
    each = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(len(stacked.tokens))]
    size = sum(table["token"].size for key, table in params.items() if key.startswith("depth"))
    return [
        Row(name, None, None, "parameters", float(size), "n-grams"),
        Row(name, None, None, "test_loss", evaluate(params, each)["loss"], "nats/token"),
        _sample(cell, name, None, model, params),
    ]


def model_overrides(cell: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The model's fields, its width such that it has about `num_parameters`."""
    kind = cell["model"]
    fixed = {"kind": kind, "vocab_size": vocab_size, "context_length": cell["context_length"]}
    fixed |= {
        "mlp": {"window": 8, "d_embed": 16},
        "tcn": {"num_layers": 3},
        "transformer": {"num_layers": 2, "num_heads": 2},
    }.get(kind, {"num_layers": 1})

    def size(**fields):
        overrides = {f"model.{n}": v for n, v in {**fixed, **fields}.items()}
        return count_params(kinds.param_specs(apply_overrides(RunConfig(), overrides).model))

    def nearest(field, candidates, **more):
        def excess(n):
            return size(**{field: n}, **more) - cell["num_parameters"]

        place = bisect.bisect_right(candidates, 0, key=excess)  # sizes rise with the width
        return min(candidates[max(0, place - 1) : place + 1], key=lambda n: abs(excess(n)))

    if kind == "transformer":  # its width is even for each head; the feed-forward makes up for it
        width = nearest("d_model", range(4, _WIDEST, 4))
        return {
            **fixed,
            "d_model": width,
            "d_ff": nearest("d_ff", range(1, 8 * width), d_model=width),
        }
    return {**fixed, "d_model": nearest("d_model", range(2, _WIDEST))}


def run_configs(cell: dict[str, Any], vocab_size: int) -> list[RunConfig]:
    """One for each rate and seed, the rates outermost."""
    model = {f"model.{n}": v for n, v in model_overrides(cell, vocab_size).items()}
    shared = {
        **model,
        "data.batch_size": cell["batch_size"],
        "optim.schedule": "constant",
        "optim.warmup_steps": cell["warmup_steps"],
        "train.num_steps": cell["num_steps"],
        "train.steps_per_call": cell["eval_every"],
        "train.eval_every": cell["eval_every"],
        "train.save_every": cell["num_steps"],
    }
    lanes = itertools.product(cell["peak_lrs"], range(cell["num_seeds"]))
    return [
        apply_overrides(RunConfig(), {**shared, "optim.peak_lr": lr, "seed": seed})
        for lr, seed in lanes
    ]


def train(cell: dict[str, Any]) -> list[Row]:
    """All rates and seeds as one population; the reach and a sample of the best rate."""
    parts, name = open_parts(cell["path"]), {"model": cell["model"]}
    tokenizer = parts.text.tokenizer
    configs = run_configs(cell, tokenizer.vocab_size)
    [(cfg, traced, _)] = group_by_structure(configs)
    program = make_program(cfg, tokenizer.token_bytes, traced)
    model = kinds.build(cfg.model)
    shared = {
        "validation_loss": _batches(parts.text.validation, cell),
        "test_loss": _batches(parts.test, cell),
    }

    def evaluate(state, shared):
        return {name: program.evaluate(state, text)["loss"] for name, text in shared.items()}

    trained = train_runs(parts.text, configs, program, traced, evaluate=evaluate, shared=shared)
    cost = flops.of_model(cfg.model, model).causal
    rows = [
        Row(name, None, None, "parameters", float(count_params(model.specs)), "parameters"),
        Row(name, None, None, "width", float(cfg.model.d_model), "1"),
        Row(name, None, None, "flops_per_token", float(cost), "FLOP"),
    ]
    lanes = [({**name, "peak_lr": c.optim.peak_lr}, c.seed) for c in configs]
    for done, scores in trained.evaluations:
        for metric, mean in scores.items():
            rows += [
                Row(fields, seed, done, metric, float(loss), "nats/token")
                for (fields, seed), loss in zip(lanes, mean.compute(), strict=True)
            ]
    final = np.reshape(
        trained.evaluations[-1][1]["validation_loss"].compute(), (-1, cell["num_seeds"])
    )
    means = np.where(np.isfinite(final.mean(axis=1)), final.mean(axis=1), np.inf)
    first = int(np.argmin(means)) * cell["num_seeds"]
    best = jax.device_get(trained.state.params)
    best = jax.tree.map(lambda x: x[first : first + cell["num_seeds"]], best)
    measure = make_reach(model)
    test = _batches(parts.test, cell)
    ids = [np.reshape(x, (-1, x.shape[-1]))[:SAMPLE_ROWS] for x in (test.tokens, test.targets)]
    for seed in range(cell["num_seeds"]):
        params = jax.tree.map(lambda x, seed=seed: x[seed], best)
        norms = np.asarray(measure(params, *ids), np.float64)
        fields = lanes[first][0]
        rows += [
            Row({**fields, "distance": k}, seed, cell["num_steps"], "gradient_reach", share, "1")
            for k, share in enumerate((norms / norms[0]).tolist())
        ]
    rows.append(
        _sample(cell, lanes[first][0], cell["num_steps"], model, jax.tree.map(lambda x: x[0], best))
    )
    return rows


def make_reach(model: LanguageModel) -> Callable[[Params, Array, Array], Array]:
    """Builds `reach(params, tokens, targets i32[B, S]) -> f32[S]`, compiled.

    The norm of d loss[S - 1] / d embedding[S - 1 - k] at place k, the mean over rows. Each row has
    a table of its own with a row for each of its places, so that the derivative by the table is
    that by the embeddings. The head must not read the table.
    """

    def loss(table, params, target):
        S = len(table)
        batch = Batch(jnp.arange(S)[None], jnp.full((1, S), target), None)
        return score_targets(model, {**params, "embed": table}, batch).nll[0, -1]

    @jax.jit
    def reach(params, tokens, targets):
        tables = jnp.asarray(params["embed"])[tokens]
        grads = jax.vmap(jax.grad(loss), (0, None, 0))(tables, params, targets[:, -1])
        return jnp.mean(jnp.linalg.norm(grads, axis=-1), axis=0)[::-1]

    return reach


def _sample(
    cell: dict[str, Any], fields: dict[str, Any], step: int | None, model: LanguageModel, params
) -> Row:
    """Text that goes on from the beginning of the test part."""
    parts = open_parts(cell["path"])
    prompt = parts.test.take(np.arange(1))
    out = generate(
        model,
        params,
        [prompt],
        jax.random.key(0),
        num_tokens=cell["sample_tokens"],
        temperature=0.8,
    )
    text = parts.text.tokenizer.decode(np.asarray(out.tokens[0]))
    return Row({**fields, "text": text}, 0, step, "sample", float(len(text)), "characters")
