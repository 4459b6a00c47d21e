"""Trains one variant of the model at all its peak rates and seeds as one population."""

import itertools
from typing import Any

from experiments import language
from experiments.comparing import has_diverged
from experiments.language import unigram_loss, validation_losses
from experiments.texts import plays
from jaxlm.core.params import count_params
from jaxlm.core.results import Row
from jaxlm.models.transformer import param_specs
from jaxlm.train.config import RunConfig


def run_config(cell: dict[str, Any], peak_lr: float, seed: int) -> RunConfig:
    return language.run_config({**cell, "peak_lr": peak_lr}, plays().tokenizer, seed)


def run_cell(cell: dict[str, Any]) -> list[Row]:
    text, sizes = plays(), (cell["model"]["context_length"], cell["eval_tokens"])
    variant = {"variant": cell["variant"]}
    lanes = list(itertools.product(cell["peak_lrs"], range(cell["num_seeds"])))
    configs = [run_config(cell, *lane) for lane in lanes]
    losses, unigram = validation_losses(text, configs, sizes[1]), unigram_loss(text, *sizes)
    size = count_params(param_specs(configs[0].model))
    rows = [
        Row(variant, None, None, "parameters", float(size), "parameters"),
        Row(variant, None, None, "unigram_loss", unigram, "nats/token"),
    ]
    tokens_per_step = cell["batch_size"] * sizes[0]
    for place, (peak_lr, seed) in enumerate(lanes):
        fields = {**variant, "peak_lr": peak_lr}
        for done, values in losses.items():
            at = {**fields, "tokens": done * tokens_per_step}
            loss = float(values[place])
            rows.append(Row(at, seed, done, "validation_loss", loss, "nats/token"))
        diverged = float(has_diverged(float(losses[cell["num_steps"]][place]), unigram))
        rows.append(Row(fields, seed, cell["num_steps"], "diverged", diverged, "share"))
    return rows
