"""Trains a schedule at all its peak rates and warmup lengths as one population."""

import itertools
from typing import Any

import numpy as np

from experiments.comparing import has_diverged
from experiments.language import unigram_loss, validation_losses
from experiments.texts import plays
from jaxlm.core.config import apply_overrides
from jaxlm.core.results import Row
from jaxlm.optim.schedules import learning_rate
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values


def run_config(cell: dict[str, Any], peak_lr: float, warmup_steps: int, seed: int) -> RunConfig:
    """One run of the cell; `lr_scale` gives the original inverse square root the same peak."""
    return apply_overrides(
        RunConfig(),
        {
            "seed": seed,
            "model.vocab_size": plays().tokenizer.vocab_size,
            "model.norm_placement": cell["norm_placement"],
            "model.num_layers": cell["num_layers"],
            "model.d_model": cell["d_model"],
            "model.num_heads": cell["num_heads"],
            "model.context_length": cell["context_length"],
            "data.batch_size": cell["batch_size"],
            "optim.schedule": cell["schedule"],
            "optim.peak_lr": peak_lr,
            "optim.warmup_steps": warmup_steps,
            "optim.lr_scale": peak_lr * (cell["d_model"] * max(warmup_steps, 1)) ** 0.5,
            "optim.clip_norm": cell["clip_norm"],
            "train.num_steps": cell["num_steps"],
            "train.steps_per_call": cell["eval_every"],
            "train.eval_every": cell["eval_every"],
            "train.save_every": cell["num_steps"],
        },
    )


def run_cell(cell: dict[str, Any]) -> list[Row]:
    """Losses and rates of one schedule and norm placement."""
    text, sizes = plays(), (cell["context_length"], cell["eval_tokens"])
    structure = {"schedule": cell["schedule"], "norm_placement": cell["norm_placement"]}
    lanes = list(
        itertools.product(cell["peak_lrs"], cell["warmup_steps"], range(cell["num_seeds"]))
    )
    losses = validation_losses(text, [run_config(cell, *lane) for lane in lanes], sizes[1])
    unigram = unigram_loss(text, *sizes)
    rows = [Row(structure, None, None, "unigram_loss", unigram, "nats/token")]
    for place, (peak_lr, warmup_steps, seed) in enumerate(lanes):
        fields = {**structure, "peak_lr": peak_lr, "warmup_steps": warmup_steps}
        rows += [
            Row(fields, seed, done, "validation_loss", float(values[place]), "nats/token")
            for done, values in losses.items()
        ]
        final = float(losses[cell["num_steps"]][place])
        rows.append(
            Row(
                fields,
                seed,
                cell["num_steps"],
                "diverged",
                float(has_diverged(final, unigram)),
                "share",
            )
        )
    return rows + schedule_rows(cell, structure)


def schedule_rows(cell: dict[str, Any], structure: dict[str, Any]) -> list[Row]:
    """The rate of the update that follows each step, as the run has it, at the highest peak."""
    rows, peak_lr, steps = [], max(cell["peak_lrs"]), np.arange(cell["num_steps"])
    for warmup_steps in cell["warmup_steps"]:
        hypers = hyper_values(run_config(cell, peak_lr, warmup_steps, seed=0))
        fields = {**structure, "peak_lr": peak_lr, "warmup_steps": warmup_steps}
        rates = learning_rate(cell["schedule"], steps, hypers)
        rows += [
            Row(fields, None, n, "learning_rate", float(rate), "1") for n, rate in enumerate(rates)
        ]
    return rows
