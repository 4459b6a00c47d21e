"""The copy task in JAX: its sequences, its programs, and what is read off the trained models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array
from jaxlm.core.config import apply_overrides
from jaxlm.core.params import path_key
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch
from jaxlm.models import transformer
from jaxlm.nn.attention import attend
from jaxlm.nn.cross_entropy import cross_entropy
from jaxlm.train.config import RunConfig
from jaxlm.train.population import Trained, stack_hypers, train_population
from jaxlm.train.program import Program, hyper_values, make_program

PAD, SEPARATOR, FIRST_SYMBOL = 0, 1, 2
NUM_TEST = 100  # sequences on which a seed of the classic setting is judged


def run_cell(cell: dict[str, Any]) -> list[Row]:
    """The rows of one cell; all its seeds are one population."""
    return {"classic": run_classic, "causal": run_causal}[cell["part"]](cell)


# (a) The classic setting: an encoder that gives back what it is given.


def classic_config(num_steps: int) -> RunConfig:
    """One post-norm block of the setting; the training is causal only in name."""
    cfg = apply_overrides(
        RunConfig(),
        {
            "model.vocab_size": 10,
            "model.context_length": 4,
            "model.num_layers": 1,
            "model.d_model": 32,
            "model.num_heads": 2,
            "model.d_ff": 64,
            "model.activation": "relu",
            "model.norm": "layer",
            "model.norm_placement": "post",
            "model.positions": "learned",
            "model.bias": True,
            "model.head_bias": True,
            "data.batch_size": 32,
            "optim.name": "adam",
            "optim.schedule": "constant",
            "optim.peak_lr": 1e-3,
            "optim.b2": 0.999,
            "optim.clip_norm": None,
            "train.num_steps": num_steps,
            "train.steps_per_call": num_steps,
            "train.eval_every": num_steps,
            "train.save_every": num_steps,
        },
    )
    return cfg


def classic_program(cfg: RunConfig) -> Program:
    """Its program; attention sees both ways."""

    def attend_both_ways(q, k, v, *, causal, **options):
        del causal
        return attend(q, k, v, causal=False, **options)

    return make_program(cfg, np.ones(cfg.model.vocab_size, np.int32), attend=attend_both_ways)


def classic_batch(key: Array, batch_size: int, cfg: RunConfig) -> Batch:
    """Sequences of the symbols 1..9; the target at a place is the symbol in it."""
    shape = (batch_size, cfg.model.context_length)
    tokens = jax.random.randint(key, shape, 1, cfg.model.vocab_size)
    return Batch(tokens=tokens, targets=tokens, weights=jnp.ones(shape, jnp.float32))


def train_classic(seeds: list[int], num_steps: int) -> Trained:
    """Every seed in one program that draws its own batches; evaluation on fresh ones.

    Its one evaluation is {"token_accuracy", "exact_match"}: f32[P].
    """
    cfg = classic_config(num_steps)
    program = classic_program(cfg)

    def step(state, n):
        key = jax.random.fold_in(path_key(state.key, "data"), n)
        return program.step(state, classic_batch(key, cfg.data.batch_size, cfg))

    def evaluate(state, _):
        batch = classic_batch(path_key(state.key, "test"), NUM_TEST, cfg)
        right = program.model(state.hypers).forward(state.params, batch.tokens).argmax(-1)
        return accuracies(right == batch.targets, batch.weights)

    hypers = stack_hypers([hyper_values(cfg)] * len(seeds))
    return train_population(
        program.init,
        step,
        seeds=seeds,
        hypers=hypers,
        inputs=lambda first, last: np.tile(np.arange(first, last), (len(seeds), 1)),
        num_steps=num_steps,
        evaluate=evaluate,
    )


def run_classic(cell: dict[str, Any]) -> list[Row]:
    seeds = list(range(cell["num_seeds"]))
    trained = train_classic(seeds, cell["num_steps"])
    [(step, scores)] = trained.evaluations
    rows = [
        Row({"part": "classic"}, seed, step, name, float(values[seed]), "share")
        for name, values in scores.items()
        for seed in seeds
    ]
    losses = trained.metrics["loss"]
    for done in range(cell["log_every"], cell["num_steps"] + 1, cell["log_every"]):
        fields = {"part": "classic"}
        rows += [
            Row(fields, seed, done, "loss", float(losses[seed, done - 1]), "nats/token")
            for seed in seeds
        ]
    return rows


# (b) Causal copying: sequence, separator, the sequence again.


def causal_config(cell: dict[str, Any]) -> RunConfig:
    num_steps = cell["num_steps"]
    return apply_overrides(
        RunConfig(),
        {
            "model.vocab_size": FIRST_SYMBOL + cell["num_symbols"],
            "model.context_length": 2 * max(cell["test_lengths"]) + 1,
            "model.num_layers": cell["num_layers"],
            "model.num_heads": cell["num_heads"],
            "model.d_model": cell["d_model"],
            "model.positions": cell["positions"],
            "data.batch_size": cell["batch_size"],
            "optim.name": cell["optimizer"],
            "optim.peak_lr": cell["peak_lr"],
            "optim.warmup_steps": cell["warmup_steps"],
            "train.num_steps": num_steps,
            "train.steps_per_call": cell["eval_every"],
            "train.eval_every": cell["eval_every"],
            "train.save_every": num_steps,
        },
    )


def copy_batch(key: Array, lengths: Array, num_symbols: int, max_length: int) -> Batch:
    """Rows `sequence <sep> sequence <pad>...`, of no symbol twice, with the copy as the target.

    Args:
      lengths: i32[B], of each row's sequence, at most max_length.
    Returns:
      [B, 2 * max_length + 1]; the weight is 1 where the target belongs to the copy.
    """
    order = jnp.argsort(jax.random.uniform(key, (lengths.shape[0], num_symbols)))
    symbols = FIRST_SYMBOL + order[:, :max_length]
    place, length = jnp.arange(2 * max_length + 2), lengths[:, None]
    source = jnp.where(place < length, place, place - length - 1)  # in the sequence
    drawn = jnp.take_along_axis(symbols, jnp.clip(source, 0, max_length - 1), axis=1)
    ids = jnp.where(place == length, SEPARATOR, drawn)
    ids = jnp.where(place > 2 * length, PAD, ids).astype(jnp.int32)
    weights = (place >= length) & (place < 2 * length)
    return Batch(
        tokens=ids[:, :-1], targets=ids[:, 1:], weights=weights[:, :-1].astype(jnp.float32)
    )


def accuracies(right: Array, weights: Array) -> dict[str, Array]:
    """Shares of tokens and of whole rows that are right, of bool[B, S], where weights are 1."""
    token = jnp.sum(right * weights) / jnp.sum(weights)
    exact = jnp.mean(jnp.all(right | (weights == 0), axis=1).astype(jnp.float32))
    return {"token_accuracy": token, "exact_match": exact}


def copy_scores(maps: Array, length: int) -> Array:
    """How much each head looks at the symbol to be copied next: f32[N, H] in [0, 1].

    Args:
      maps: f32[N, B, H, S, S], attention of rows with sequences of `length`.
    """
    query = length + jnp.arange(length)
    return jnp.mean(maps[..., query, query - length], axis=(1, 3))


def run_causal(cell: dict[str, Any]) -> list[Row]:
    cfg, seeds = causal_config(cell), list(range(cell["num_seeds"]))
    symbols, longest = cell["num_symbols"], cell["train_length"]
    program = make_program(cfg, np.ones(cfg.model.vocab_size, np.int32))

    def step(state, n):
        keys = jax.random.split(jax.random.fold_in(path_key(state.key, "data"), n))
        lengths = jax.random.randint(keys[0], (cfg.data.batch_size,), 1, longest + 1)
        return program.step(state, copy_batch(keys[1], lengths, symbols, longest))

    def evaluate(state, lengths):
        def at_length(length):
            key = jax.random.fold_in(path_key(state.key, "test"), length)
            rows = jnp.full(cell["num_test"], length)
            batch = copy_batch(key, rows, symbols, max(cell["test_lengths"]))
            logits = program.model(state.hypers).forward(state.params, batch.tokens)
            right = logits.argmax(-1) == batch.targets
            nll, _ = cross_entropy(logits, batch.targets)
            loss = jnp.sum(nll * batch.weights) / jnp.sum(batch.weights)
            return {**accuracies(right, batch.weights), "loss": loss}

        return jax.lax.map(at_length, lengths)

    trained = train_population(
        program.init,
        step,
        seeds=seeds,
        hypers=stack_hypers([hyper_values(cfg)] * len(seeds)),
        inputs=lambda first, last: np.tile(np.arange(first, last), (len(seeds), 1)),
        num_steps=cfg.train.num_steps,
        eval_every=cell["eval_every"],
        evaluate=evaluate,
        shared=np.array(cell["test_lengths"], np.int32),
    )
    fields = {name: cell[name] for name in ("part", "positions", "num_layers", "num_heads")}
    units = {"token_accuracy": "share", "exact_match": "share", "loss": "nats/token"}
    rows = [
        Row({**fields, "length": length}, seed, done, name, float(values[seed, i]), units[name])
        for done, scores in trained.evaluations
        for name, values in scores.items()
        for i, length in enumerate(cell["test_lengths"])
        for seed in seeds
    ]
    return rows + attention_rows(cell, cfg, trained, fields)


def attention_rows(cell, cfg, trained: Trained, fields: dict[str, Any]) -> list[Row]:
    """(c) Every head's copy score by seed, and the map of the best head of the first seed."""
    length = cell["map_length"]
    draw = jax.jit(copy_batch, static_argnums=(2, 3))
    lengths = np.full(16, length, np.int32)
    batch = draw(jax.random.key(1), lengths, cell["num_symbols"], cell["train_length"])
    tokens = np.asarray(batch.tokens)[:, : 2 * length]
    look = jax.jit(jax.vmap(functools.partial(_look, cfg=cfg.model, length=length), (0, None)))
    scores, maps = jax.device_get(look(trained.state.params, tokens))
    step = cfg.train.num_steps
    rows = [
        Row({**fields, "layer": layer, "head": head}, seed, step, "copy_score", float(s), "share")
        for seed, of_seed in enumerate(scores)
        for (layer, head), s in np.ndenumerate(of_seed)
    ]
    layer, head = np.unravel_index(scores[0].argmax(), scores[0].shape)
    where = {**fields, "layer": int(layer), "head": int(head)}
    rows += [
        Row({**where, "query": q, "key": k}, 0, step, "attention", float(value), "share")
        for (q, k), value in np.ndenumerate(maps[0, layer, head])
        if k <= q
    ]
    return rows + [
        Row({**where, "query": q}, 0, step, "token", float(id), "id")
        for q, id in enumerate(tokens[0])
    ]


def _look(params, tokens, *, cfg, length):
    maps = transformer.trace(params, tokens, cfg).attention
    return copy_scores(maps, length), maps[:, 0]
