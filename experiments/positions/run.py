"""Trains with one kind of position, and scores the same targets at every place of long windows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import language
from experiments.language import loss_rows, train_runs, unigram_loss, validation
from experiments.positions import LEARNED, SINUSOIDAL
from experiments.texts import plays
from jaxlm.core.arrays import Array
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch, Split
from jaxlm.models import transformer
from jaxlm.models.scoring import score_targets
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.positions import sinusoidal
from jaxlm.train.config import RunConfig
from jaxlm.train.program import make_program

ROWS = 16  # windows that are scored at once


def run_config(cell: dict[str, Any], seed: int) -> RunConfig:
    kind = {"model.positions": cell["positions"]}
    return language.run_config(cell, plays().tokenizer, seed, **kind)


def run_cell(cell: dict[str, Any]) -> list[Row]:
    text, seeds = plays(), range(cell["num_seeds"])
    configs = [run_config(cell, seed) for seed in seeds]
    model, fields = configs[0].model, {"positions": cell["positions"]}
    program = make_program(configs[0], text.tokenizer.token_bytes)
    seen = validation(text, model.context_length, cell["eval_tokens"])
    trained = train_runs(text, configs, program, evaluate=program.evaluate, shared=seen)
    unigram = unigram_loss(text, model.context_length, cell["eval_tokens"])
    rows = [Row(fields, None, None, "unigram_loss", unigram, "nats/token")]
    rows += loss_rows(fields, trained)
    params = jax.device_get(trained.state.params)
    lanes = [jax.tree.map(lambda x, seed=seed: x[seed], params) for seed in seeds]
    windows = spread_windows(text.validation, cell)
    for window in (None, model.context_length):
        if window and cell["positions"] == LEARNED:
            continue
        losses = make_losses(dataclasses.replace(model, window=window), cell)
        for seed, lane in enumerate(lanes):
            for place, loss in enumerate(losses(lane, windows)):
                at = {**fields, "windowed": window is not None, "place": place * cell["bin_size"]}
                rows.append(Row(at, seed, None, "loss_at", float(loss), "nats/token"))
    if cell["positions"] == SINUSOIDAL:
        table = sinusoidal(jnp.arange(model.context_length), model.d_model)
        rows += similarity_rows(fields, None, np.asarray(table), drawn=True)
    if cell["positions"] == LEARNED:
        for seed, lane in enumerate(lanes):
            rows += similarity_rows(fields, seed, lane["positions"], drawn=seed == 0)
    return rows


# Loss by place.


def num_bins(cell: dict[str, Any]) -> int:
    """J, of the longest windows."""
    return cell["times"] * cell["model"]["context_length"] // cell["bin_size"]


def num_blocks(cell: dict[str, Any]) -> int:
    """M, of `bin_size` targets that are scored."""
    return cell["eval_tokens"] // cell["bin_size"]


def spread_windows(split: Split, cell: dict[str, Any]) -> Batch:
    """[M + J - 1, J * bin_size]: windows that start `bin_size` tokens apart.

    So each of M blocks of targets is in one of them at each of J places, behind as much text as
    comes before it there, and places differ in nothing else.
    """
    bins, size = num_bins(cell), cell["bin_size"]
    starts = np.arange(num_blocks(cell) + bins - 1) * size
    ids = split.take(starts[:, None] + np.arange(bins * size + 1))
    return Batch(tokens=ids[:, :-1], targets=ids[:, 1:], weights=np.ones(ids[:, 1:].shape))


def loss_by_bin(nll: np.ndarray, cell: dict[str, Any]) -> np.ndarray:
    """Mean losses f64[bins] of the same targets, of nll [M + J - 1, bins * bin_size]."""
    last, blocks = num_bins(cell) - 1, num_blocks(cell)
    of_bins = np.float64(nll).reshape(len(nll), -1, cell["bin_size"]).mean(-1)
    # Block m is at place j of window m + (J - 1) - j.
    return np.array(
        [of_bins[last - j : last - j + blocks, j].mean() for j in range(of_bins.shape[1])]
    )


def make_losses(cfg: TransformerConfig, cell: dict[str, Any]) -> Callable[..., np.ndarray]:
    """(params, windows) -> the `loss_by_bin`, up to the end of a learned table."""
    model = transformer.build(cfg)
    length = cfg.context_length if cfg.positions == LEARNED else None

    @jax.jit
    def score(params, windows):
        def of_window(window):
            one = jax.tree.map(lambda x: x[None, :length], window)
            return score_targets(model, params, one).nll[0]

        return jax.lax.map(of_window, windows, batch_size=ROWS)

    return lambda params, windows: loss_by_bin(np.asarray(score(params, windows)), cell)


# Similarity of position vectors.


def similarity(table: Array) -> np.ndarray:
    """Cosines f64[S, S] of the rows of a table [S, D]."""
    rows = np.asarray(table, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def similarity_rows(
    fields: dict[str, Any], seed: int | None, table: np.ndarray, *, drawn: bool
) -> list[Row]:
    """By distance the mean cosine and how far single ones are from it; of a drawn table all."""
    cosines, rows = similarity(table), []
    for distance in range(len(cosines)):
        values = np.diagonal(cosines, distance)
        at = {**fields, "distance": distance}
        spread = np.max(np.abs(values - values.mean()))
        rows.append(Row(at, seed, None, "similarity", float(values.mean()), "1"))
        rows.append(Row(at, seed, None, "similarity_spread", float(spread), "1"))
    if drawn:
        for (a, b), value in np.ndenumerate(cosines):
            if b <= a:
                at = {**fields, "a": a, "b": b}
                rows.append(Row(at, seed, None, "cosine", float(value), "1"))
    return rows
