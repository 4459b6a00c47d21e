"""Trains one number of heads, looks at what each head attends to, and takes heads out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import language
from experiments.heads import MEAN, SCORES, ZERO
from experiments.language import loss_rows, train_runs, validation
from experiments.texts import plays
from jaxlm.analysis.statistics import paired_interval
from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch, batch_at
from jaxlm.models import transformer
from jaxlm.models.scoring import score_targets
from jaxlm.models.transformer import TransformerConfig
from jaxlm.train.config import RunConfig
from jaxlm.train.program import make_program

LOOKED_AT = 32  # windows of either text: to take heads' means, and to score their attention


def run_config(cell: dict[str, Any], seed: int) -> RunConfig:
    """With biases: that of wo can hold the mean of a head that is taken out."""
    return language.run_config(cell, plays().tokenizer, seed, **{"model.bias": True})


def run_cell(cell: dict[str, Any]) -> list[Row]:
    text, seeds = plays(), range(cell["num_seeds"])
    configs = [run_config(cell, seed) for seed in seeds]
    model = configs[0].model
    program = make_program(configs[0], text.tokenizer.token_bytes)
    # At least two batches: half of the windows rank the heads, the others judge.
    windows = validation(text, model.context_length, cell["eval_tokens"], at_least=2)
    trained = train_runs(text, configs, program, evaluate=program.evaluate, shared=windows)
    fields = {"num_heads": model.num_heads}
    size = count_params(program.specs)
    rows = [Row(fields, None, None, "parameters", float(size), "parameters")]
    rows += loss_rows(fields, trained)
    look = jax.jit(functools.partial(look_at_heads, cfg=model))
    losses_without = make_losses_without(model, windows)
    params = jax.device_get(trained.state.params)
    sample = batch_at(text.train, 0, 0, batch_size=LOOKED_AT, context_length=model.context_length)
    seen = windows.tokens.reshape(-1, model.context_length)[:LOOKED_AT]
    for seed in seeds:
        lane = jax.tree.map(lambda x, seed=seed: x[seed], params)
        _, means, _ = look(lane, sample.tokens)
        scores, _, maps = jax.device_get(look(lane, seen))
        rows += score_rows(fields, seed, scores)
        rows += pruning_rows(fields, seed, functools.partial(losses_without, lane, means), model)
        if seed == 0 and cell["drawn"]:
            shown = seen[0, : cell["drawn"]]
            rows += map_rows(fields, maps[:, 0, :, : cell["drawn"], : cell["drawn"]])
            rows += [
                Row({**fields, "query": q, "character": c}, 0, None, "token", float(id), "id")
                for q, (id, c) in enumerate(zip(shown, text.tokenizer.decode(shown), strict=True))
            ]
    return rows


# What heads attend to.


def look_at_heads(
    params: Params, tokens: Array, cfg: TransformerConfig
) -> tuple[dict[str, Array], Array, Array]:
    """Scores f32[N, H] by name, the mean of what each head gives f32[N, H, Dh], and the maps."""
    seen = transformer.trace(params, tokens, cfg)
    return attention_scores(seen.attention), jnp.mean(seen.heads, axis=(1, 2)), seen.attention


def attention_scores(maps: Array) -> dict[str, Array]:
    """Where causal maps f32[N, B, H, S, S] look: f32[N, H] of each kind.

    Shares of the attention of the places from the second on: to the token before, to the place's
    own, to the first of all; and the mean distance in tokens.
    """
    place = jnp.arange(maps.shape[-1])
    distance = place[:, None] - place
    of_places = {
        "previous": jnp.diagonal(maps, offset=-1, axis1=-2, axis2=-1),
        "own": jnp.diagonal(maps, axis1=-2, axis2=-1)[..., 1:],
        "first": maps[..., 1:, 0],
        "distance": jnp.sum(maps * distance, axis=-1)[..., 1:],
    }
    return {name: jnp.mean(of_places[name], axis=(1, 3)) for name in SCORES}


def score_rows(fields: dict[str, Any], seed: int, scores: dict[str, np.ndarray]) -> list[Row]:
    return [
        Row(
            {**fields, "layer": layer, "head": head},
            seed,
            None,
            name,
            float(value),
            "tokens" if name == "distance" else "share",
        )
        for name, values in scores.items()
        for (layer, head), value in np.ndenumerate(values)
    ]


def map_rows(fields: dict[str, Any], maps: np.ndarray) -> list[Row]:
    """Of maps [N, H, S, S], what is not in the future."""
    return [
        Row(
            {**fields, "layer": layer, "head": head, "query": q, "key": k},
            0,
            None,
            "attention",
            float(value),
            "share",
        )
        for (layer, head, q, k), value in np.ndenumerate(maps)
        if k <= q
    ]


# Heads taken out.


def without(params: Params, means: Array, keep: Array, fill: Array) -> Params:
    """The weights of a model in which only some heads are left.

    Args:
      means: f32[N, H, Dh], what each head gives on average.
      keep: f32[N, H], 1 or 0. fill: 1 puts a head's mean in its place, 0 nothing.
    """
    blocks = params["blocks"]
    lost = jnp.einsum("nh,nhe,nhed->nd", 1 - keep, means, blocks["wo"])
    pruned = {
        "wo": blocks["wo"] * keep[:, :, None, None],
        "bo": blocks["bo"] + fill * lost,
    }
    return {**params, "blocks": {**blocks, **pruned}}


def make_losses_without(cfg: TransformerConfig, windows: Batch) -> Callable[..., np.ndarray]:
    """(params, means, keeps [K, N, H], ZERO or MEAN) -> f64[K, windows], mean loss of each."""
    model = transformer.build(cfg)

    @jax.jit
    def losses(params, means, keep, fill, batches):
        pruned = without(params, means, keep, fill)
        nll = jax.lax.map(lambda batch: score_targets(model, pruned, batch).nll, batches)
        return jnp.mean(nll, axis=-1).ravel()

    def losses_without(params, means, keeps, fill):
        share = np.float32(fill == MEAN)
        found = [losses(params, means, np.float32(keep), share, windows) for keep in keeps]
        return np.array(jax.device_get(found), np.float64)

    return losses_without


def pruning_rows(
    fields: dict[str, Any], seed: int, losses_without: Callable[..., np.ndarray], cfg
) -> list[Row]:
    """What each head costs, and all of them one after the other, the cheapest first.

    The first half of the windows ranks the heads, the second half says what they cost.
    """
    shape = (cfg.num_layers, cfg.num_heads)
    whole = np.ones((1, *shape), np.float32)
    each = 1 - np.eye(shape[0] * shape[1], dtype=np.float32).reshape(-1, *shape)
    [base] = losses_without(whole, ZERO)
    half = len(base) // 2
    rows = []
    for fill in (ZERO, MEAN):
        found = losses_without(each, fill)
        cheapest = np.argsort((found - base)[:, :half].mean(1), kind="stable")
        for head, losses in enumerate(found):
            layer, at = divmod(head, shape[1])
            rank = len(found) - int(np.flatnonzero(cheapest == head)[0])
            named = {**fields, "fill": fill, "layer": layer, "head": at, "rank": rank}
            interval = paired_interval(losses[half:], base[half:], over="windows")
            values = {"cost": interval.mean, "cost_low": interval.low, "cost_high": interval.high}
            rows += [
                Row(named, seed, None, metric, value, "nats/token")
                for metric, value in values.items()
            ]
    keeps = np.cumprod([whole[0], *each[cheapest]], axis=0)
    for removed, losses in enumerate(losses_without(keeps, MEAN)):
        cost = float(np.mean(losses[half:] - base[half:]))
        named = {**fields, "removed": removed}
        rows.append(Row(named, seed, None, "cost_of_several", cost, "nats/token"))
    return rows
