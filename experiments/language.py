"""Runs on a real text as the lanes of one population: the training that several studies share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.texts import Text, lane_batches, validation_batches
from jaxlm.core.config import apply_overrides
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch
from jaxlm.tokenizers import Tokenizer
from jaxlm.train.config import RunConfig
from jaxlm.train.population import Trained, stack_hypers, train_population
from jaxlm.train.program import Program, group_by_structure, hyper_values, make_program

_ROWS = 16  # windows of one validation batch


def run_config(
    cell: Mapping[str, Any], tokenizer: Tokenizer, seed: int, **overrides: Any
) -> RunConfig:
    """The run of a cell with `model` (sizes by field), batch_size, peak_lr, warmup_steps,
    num_steps and eval_every, which is also the length of a call; the rest is as by default."""
    steps = dict.fromkeys(("steps_per_call", "eval_every", "save_every"), cell["eval_every"])
    return apply_overrides(
        RunConfig(),
        {
            "seed": seed,
            "model.vocab_size": tokenizer.vocab_size,
            **{f"model.{name}": value for name, value in cell["model"].items()},
            "data.batch_size": cell["batch_size"],
            "optim.peak_lr": cell["peak_lr"],
            "optim.warmup_steps": cell["warmup_steps"],
            "train.num_steps": cell["num_steps"],
            **{f"train.{name}": value for name, value in steps.items()},
            **overrides,
        },
    )


def validation_losses(
    text: Text, configs: Sequence[RunConfig], num_tokens: int
) -> dict[int, np.ndarray]:
    """The losses among `validation_scores`: {updates done: f32[P], nats/token}."""
    scores = validation_scores(text, configs, num_tokens)
    return {done: values["loss"] for done, values in scores.items()}


def validation_scores(
    text: Text, configs: Sequence[RunConfig], num_tokens: int
) -> dict[int, dict[str, np.ndarray]]:
    """Trains runs of one structure side by side; what they score on the validation text.

    A run reads its model (with the vocabulary of the text), batch, optimizer, loss, seed, number of
    steps and `train.eval_every` from its config. Runs of one seed see the same batches.

    Args:
      num_tokens: of the validation text that count, the same for every run; whole batches of them.
    Returns:
      {updates done: {"loss": f32[P], nats/token, "bits_per_byte": f32[P]}}.
    Raises:
      ValueError: configs of which one program cannot train all.
    """
    groups = group_by_structure(configs)
    if len(groups) > 1:
        raise ValueError(f"{len(configs)} configs of {len(groups)} structures: expected one")
    [(cfg, traced, _)] = groups
    program = make_program(cfg, text.tokenizer.token_bytes, traced)
    trained = train_runs(
        text,
        configs,
        program,
        traced,
        evaluate=program.evaluate,
        shared=validation(text, cfg.model.context_length, num_tokens),
    )
    return {
        done: {name: np.asarray(mean.compute(), np.float32) for name, mean in scores.items()}
        for done, scores in trained.evaluations
    }


def train_runs(
    text: Text,
    configs: Sequence[RunConfig],
    program: Program,
    traced: Sequence[str] = (),
    **more: Any,
) -> Trained:
    """Trains runs that share a program, as lanes of one population; see `validation_losses`.

    Args:
      traced: as `make_program` was given it.
      more: evaluate=, shared=, frozen= and start= of `train_population`.
    """
    cfg, seeds = configs[0], [each.seed for each in configs]
    return train_population(
        program.init,
        program.step,
        seeds=seeds,
        hypers=stack_hypers(hyper_values(each, traced) for each in configs),
        inputs=lane_batches(
            text.train,
            seeds,
            batch_size=cfg.data.batch_size,
            context_length=cfg.model.context_length,
        ),
        num_steps=cfg.train.num_steps,
        eval_every=cfg.train.eval_every,
        steps_per_call=cfg.train.steps_per_call,
        **more,
    )


def unigram_loss(text: Text, context_length: int, num_tokens: int) -> float:
    """Nats a token, on the same tokens, of a model that knows only how frequent each token is.

    Frequencies of the training text, with one added to every count.
    """
    ids = text.train.take(np.arange(text.train.num_tokens))
    counts = np.bincount(ids, minlength=text.tokenizer.vocab_size) + 1.0
    batch = validation(text, context_length, num_tokens)
    nll = -np.log(counts / counts.sum())[batch.targets]
    return float(np.sum(nll * batch.weights) / np.sum(batch.weights))


def validation(text: Text, context_length: int, num_tokens: int, *, at_least: int = 1) -> Batch:
    """[E, B, S]: whole batches of the validation text, of no more than `num_tokens` tokens.

    at_least: batches that there are in any case.
    """
    return validation_batches(
        text.validation,
        num_batches=max(at_least, num_tokens // (_ROWS * context_length)),
        batch_size=_ROWS,
        context_length=context_length,
    )


def loss_rows(fields: Mapping[str, Any], trained: Trained) -> list[Row]:
    """The losses of each evaluation; lane p is seed p."""
    return [
        Row(dict(fields), seed, step, "loss", float(loss), "nats/token")
        for step, scores in trained.evaluations
        for seed, loss in enumerate(np.asarray(scores["loss"].compute(), np.float64))
    ]
