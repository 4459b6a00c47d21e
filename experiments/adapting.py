"""A base and the runs that take it to another domain: what several studies train."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.base import BaseConfig
from experiments.language import train_runs
from experiments.texts import lane_batches, plays
from jaxlm.core.arrays import Params
from jaxlm.data.batches import Batch, Split
from jaxlm.data.config import DataConfig
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig
from jaxlm.train.population import Trained
from jaxlm.train.program import Program, make_program

WINDOWS_SEED = 0  # of the windows that every evaluation reads


def domain_windows(
    splits: Sequence[Split], *, num_batches: int, batch_size: int, context_length: int
) -> Batch:
    """[domains, E, B, S]: the same windows at every evaluation, drawn from all of each text."""
    sizes = {"batch_size": batch_size, "context_length": context_length}
    parts = [lane_batches(split, [WINDOWS_SEED], **sizes)(0, num_batches) for split in splits]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def evaluation(program: Program) -> Callable[[Any, Batch], Any]:
    """The program's evaluation of each of the domains."""
    return lambda state, domains: jax.lax.map(functools.partial(program.evaluate, state), domains)


def train_base(cfg: BaseConfig, domains: Batch) -> tuple[TransformerConfig, Trained]:
    """The structure of the base, and its one lane with evaluations of the domains."""
    text = plays("bytes")
    run = RunConfig(
        model=TransformerConfig(
            vocab_size=text.tokenizer.vocab_size,
            context_length=cfg.context_length,
            num_layers=cfg.num_layers,
            d_model=cfg.d_model,
            num_heads=cfg.num_heads,
        ),
        data=DataConfig(batch_size=cfg.batch_size),
        optim=OptimConfig(name="muon", peak_lr=cfg.peak_lr, warmup_steps=cfg.num_steps // 10),
        train=_train_config(cfg.num_steps, cfg.eval_every),
        seed=cfg.seed,
    )
    program = make_program(run, text.tokenizer.token_bytes)
    more = {"evaluate": evaluation(program), "shared": domains}
    return run.model, train_runs(text, [run], program, **more)


def adaptation(
    cfg: Any, model: TransformerConfig, seed: int, peak_lr: float, adapters: LoraConfig | None
) -> RunConfig:
    """A run of a base on other text. Its rate is constant: a stop early is no other run cut short.

    Args:
      cfg: of a study, with batch_size, warmup_steps, num_steps and eval_every.
    """
    return RunConfig(
        model=model,
        lora=adapters or LoraConfig(),
        data=DataConfig(batch_size=cfg.batch_size),
        optim=OptimConfig(
            peak_lr=peak_lr,
            schedule="warmup_stable_decay",
            warmup_steps=cfg.warmup_steps,
            decay_steps=0,
            weight_decay=0.0,
            b2=0.99,
        ),
        train=_train_config(cfg.num_steps, cfg.eval_every),
        seed=seed,
    )


def lane_of(tree: Params, lane: int) -> Params:
    """One lane's part of a population's arrays."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[lane]), tree)


def _train_config(num_steps: int, eval_every: int) -> TrainConfig:
    return TrainConfig(
        num_steps=num_steps, eval_every=eval_every, steps_per_call=eval_every, save_every=eval_every
    )
