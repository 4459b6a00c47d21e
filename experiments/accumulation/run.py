"""Gradients of one batch taken as a whole and in parts, and training with each."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments import language, library
from experiments.accumulation import (
    BY_CHANCE,
    BY_KIND,
    IN_PARTS,
    LONG,
    MEAN_OF_MEANS,
    SHORT,
    WHOLE,
)
from experiments.texts import Text, lane_batches, plays, standard_library
from jaxlm.core.arrays import Array
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch
from jaxlm.models import transformer
from jaxlm.objectives import next_token
from jaxlm.train.config import RunConfig
from jaxlm.train.population import stack_hypers, train_population
from jaxlm.train.program import hyper_values, make_program
from jaxlm.train.state import TrainState, init_state, jit_init
from jaxlm.train.step import make_train_step

resolve = library.resolve


def run_cell(cell: dict[str, Any]) -> list[Row]:
    return {"gradients": gradient_rows, "training": training_rows}[cell["part"]](cell)


def run_config(cell: dict[str, Any], seed: int = 0, num_microbatches: int = 1) -> RunConfig:
    parts = {"train.num_microbatches": num_microbatches}
    sized = {**cell, "batch_size": cell["num_parts"] * cell["part_rows"]}
    return language.run_config(sized, plays("bytes").tokenizer, seed, **parts)


# Batches of two texts.


def texts_of(cell: dict[str, Any]) -> tuple[Text, Text]:
    """The text of the first half of the parts, plays, and of the second, Python's library."""
    of_library = (tuple(cell["modules"]), cell["num_validation_modules"], cell["corpus_sha256"])
    return plays("bytes"), standard_library(*of_library)


def part_lengths(cell: dict[str, Any], lengths: str, short: int, seed: int, step: int) -> Array:
    """i64[num_parts], how many targets of a row count: all of them or the last `short`.

    Half of the parts have each: those of one text, or any.
    """
    half = cell["num_parts"] // 2
    counted = np.repeat([cell["model"]["context_length"], short], half)
    if lengths == BY_KIND:
        return counted
    return np.random.default_rng([seed, step]).permutation(counted)


def mixed_batches(
    cell: dict[str, Any], lengths: str, short: int, seeds: list[int], first: int, last: int
) -> Batch:
    """[P, steps, B, S]: rows of the plays, then of the library, of which some targets count."""
    sizes = {
        "batch_size": cell["num_parts"] // 2 * cell["part_rows"],
        "context_length": cell["model"]["context_length"],
    }
    halves = [lane_batches(t.train, seeds, **sizes)(first, last) for t in texts_of(cell)]
    whole = jax.tree.map(lambda *rows: np.concatenate(rows, axis=2), *halves)
    counted = [
        [part_lengths(cell, lengths, short, seed, step) for step in range(first, last)]
        for seed in seeds
    ]
    counted = np.repeat(counted, cell["part_rows"], axis=2)  # [P, steps, B]
    return whole.replace(weights=last_targets(counted, sizes["context_length"]))


def last_targets(counted: np.ndarray, context_length: int) -> np.ndarray:
    """f32[..., S], 1 for the last `counted` [...] of S targets: what is asked for is in front."""
    place = np.arange(context_length)
    return (place >= context_length - np.asarray(counted)[..., None]).astype(np.float32)


def mean_of_means_weights(weights: np.ndarray, num_parts: int) -> np.ndarray:
    """Weights [..., B, S] with which the mean over a batch is the mean of its parts' means.

    A token of part i with n_i of n tokens gets n / (num_parts n_i), so that every part has the
    same weight in all and the batch as much as before.
    """
    parts = weights.reshape(*weights.shape[:-2], num_parts, -1)
    of_part = parts.sum(-1, keepdims=True)
    of_batch = of_part.sum(-2, keepdims=True)
    return (parts * of_batch / (num_parts * of_part)).reshape(weights.shape).astype(np.float32)


# Gradients.


def make_gradients(cell: dict[str, Any]) -> Callable[[TrainState, Batch], dict[str, Array]]:
    """(state, batch) -> the gradient f32[...] as a whole, in parts by the step of training, and as
    the mean of the parts' means, each part a batch of its own."""
    loss_fn = loss_of(cell)

    def gradient(state, batch, num_parts):
        step = make_train_step(loss_fn, recording, num_microbatches=num_parts)
        after, _ = step(state, batch)
        return ravel_pytree(optax.tree.get(after.opt_state, "trace"))[0]

    def mean_of_means(state, batch):
        parts = jax.tree.map(lambda x: x.reshape(cell["num_parts"], -1, *x.shape[1:]), batch)
        return jnp.mean(jax.lax.map(lambda part: gradient(state, part, 1), parts), axis=0)

    @jax.jit
    def gradients(state, batch):
        return {
            WHOLE: gradient(state, batch, 1),
            IN_PARTS: gradient(state, batch, cell["num_parts"]),
            MEAN_OF_MEANS: mean_of_means(state, batch),
        }

    return gradients


def make_row_gradients(cell: dict[str, Any]) -> Callable[[TrainState, Batch], Array]:
    """(state, batch) -> f32[B, ...], of each row the gradient of the sum over its tokens."""
    loss_fn = loss_of(cell)

    @jax.jit
    def gradients(state, batch):
        def of_row(row):
            one = jax.tree.map(lambda x: x[None], row)
            found, _ = jax.grad(loss_fn, has_aux=True)(state.params, {}, {}, {}, one, state.key)
            return ravel_pytree(found)[0]

        return jax.lax.map(of_row, batch)

    return gradients


def loss_of(cell: dict[str, Any]) -> Callable:
    model = transformer.build(run_config(cell).model)
    return next_token.make_loss_fn(model, token_bytes=plays("bytes").tokenizer.token_bytes)


def recording(hypers) -> optax.GradientTransformation:
    """An optimizer whose state after a step is the gradient that it was given."""
    return optax.trace(decay=0.0)


def initial_state(cell: dict[str, Any], seed: int) -> TrainState:
    specs = transformer.param_specs(run_config(cell).model)
    make = functools.partial(init_state, specs=specs, hypers={}, make_tx=recording)
    return jit_init(make, jax.default_backend())(seed)


def gradient_rows(cell: dict[str, Any]) -> list[Row]:
    """How far each way is from the gradient of the whole, for one length of the short rows."""
    gradients, of_rows = make_gradients(cell), make_row_gradients(cell)
    rows, num = [], cell["num_batches"]
    for seed in range(cell["num_seeds"]):
        state = initial_state(cell, seed)
        for lengths in (BY_KIND, BY_CHANCE):
            fields = {"lengths": lengths, "short": cell["short"]}
            batches = mixed_batches(cell, lengths, cell["short"], [seed], 0, num)
            each = [jax.tree.map(lambda x, n=n: x[0, n], batches) for n in range(num)]
            found = [jax.device_get(gradients(state, batch)) for batch in each]
            stacked = {way: np.stack([f[way] for f in found]) for way in found[0]}
            for way in (IN_PARTS, MEAN_OF_MEANS):
                at = {**fields, "way": way}
                for size in averaged(num):
                    error = relative_error(stacked[way], stacked[WHOLE], size)
                    more = {**at, "batches": size}
                    rows.append(Row(more, seed, None, "error", error, "share of the norm"))
            sums = np.asarray(of_rows(state, each[0]), np.float64)
            weights = each[0].weights.sum(1, dtype=np.float64)
            for way, error in float64_errors(sums, weights, cell["num_parts"]).items():
                at = {**fields, "way": way}
                rows.append(Row(at, seed, None, "float64_error", error, "share of the norm"))
    return rows


def averaged(num_batches: int) -> list[int]:
    """1, 2, 4, ... up to num_batches."""
    return [2**n for n in range(num_batches.bit_length())]


def relative_error(found: np.ndarray, right: np.ndarray, size: int) -> float:
    """Norm of the difference of the means over `size` gradients [num, ...], as a share of the norm.

    The mean over all runs of that size, of which there are num / size.
    """
    difference, right = (
        x.reshape(-1, size, x.shape[-1]).mean(1, dtype=np.float64) for x in (found - right, right)
    )
    return float(np.mean(np.linalg.norm(difference, axis=1) / np.linalg.norm(right, axis=1)))


def float64_errors(sums: np.ndarray, weights: np.ndarray, num_parts: int) -> dict[str, float]:
    """Errors of the two ways, all additions in float64.

    Args:
      sums: f64[B, ...], gradients of the rows' sums. weights: f64[B], their numbers of tokens.
    """
    right = sums.sum(0) / weights.sum()
    parts = sums.reshape(num_parts, -1, sums.shape[-1]).sum(1)
    of_part = weights.reshape(num_parts, -1).sum(1)
    ways = {
        IN_PARTS: functools.reduce(np.add, parts) / of_part.sum(),
        MEAN_OF_MEANS: np.mean(parts / of_part[:, None], axis=0),
    }
    norm = np.linalg.norm(right)
    return {way: float(np.linalg.norm(found - right) / norm) for way, found in ways.items()}


# Training.


def training_rows(cell: dict[str, Any]) -> list[Row]:
    """Validation losses of all seeds trained one way, as one population."""
    seeds, way, short = list(range(cell["num_seeds"])), cell["way"], cell["short"]
    configs = [run_config(cell, s, 1 if way == WHOLE else cell["num_parts"]) for s in seeds]
    program = make_program(configs[0], plays("bytes").tokenizer.token_bytes)

    def inputs(first, last):
        batches = mixed_batches(cell, cell["lengths"], short, seeds, first, last)
        if way != MEAN_OF_MEANS:
            return batches
        return batches.replace(weights=mean_of_means_weights(batches.weights, cell["num_parts"]))

    def evaluate(state, both):
        return jax.lax.map(functools.partial(program.evaluate, state), both)["loss"]

    trained = train_population(
        program.init,
        program.step,
        seeds=seeds,
        hypers=stack_hypers(map(hyper_values, configs)),
        inputs=inputs,
        num_steps=cell["num_steps"],
        eval_every=cell["eval_every"],
        evaluate=evaluate,
        shared=validation(cell),
    )
    fields = {"way": way, "lengths": cell["lengths"]}
    rows = []
    for step, scores in trained.evaluations:
        for seed, losses in enumerate(np.asarray(scores.compute(), np.float64)):
            for text, loss in zip((LONG, SHORT), losses, strict=True):
                at = {**fields, "text": text}
                rows.append(Row(at, seed, step, "loss", float(loss), "nats/token"))
    return rows


def validation(cell: dict[str, Any]) -> Batch:
    """[2, E, B, S]: windows of each text, of which the targets count that do when lengths go with
    the text."""
    context_length = cell["model"]["context_length"]
    sizes = {"batch_size": cell["part_rows"], "context_length": context_length}
    found = [
        lane_batches(t.validation, [0], **sizes)(0, cell["eval_batches"]) for t in texts_of(cell)
    ]
    both = jax.tree.map(lambda *x: np.concatenate(x), *found)
    counted = np.array([context_length, cell["short"]])[:, None, None]
    counted = np.broadcast_to(counted, both.tokens.shape[:-1])
    return both.replace(weights=last_targets(counted, context_length))
