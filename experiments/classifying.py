"""Classifiers as the lanes of one population: the training that several studies share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.data.examples import examples_at
from jaxlm.models.api import Classifier
from jaxlm.objectives.classification import make_loss_fn
from jaxlm.optim.config import OptimConfig, hyper_values
from jaxlm.optim.optimizers import make_tx
from jaxlm.train.population import Trained, stack_hypers, train_population
from jaxlm.train.state import init_state
from jaxlm.train.step import make_train_step

_CHUNK = 250  # inputs at once in a test


class Lane(NamedTuple):
    """One run.

    examples: pytree of arrays of one length, of which each step reads some. hypers: the numbers of
    its loss, the same names in every lane.
    """

    seed: int
    examples: Any
    peak_lr: float
    hypers: dict[str, float]


def train_lanes(
    specs: dict[str, Any],
    loss_fn: Callable,
    lanes: Sequence[Lane],
    *,
    num_steps: int,
    batch_size: int,
    **more: Any,
) -> Trained:
    """Trains the lanes side by side, with AdamW and a cosine after a tenth of warmup.

    Args:
      more: start=, evaluate= and shared= of `train_population`.
    """
    optim = OptimConfig(weight_decay=0.01, warmup_steps=num_steps // 10)
    tx = make_tx(optim, specs)

    def numbers(lane):
        cfg = OptimConfig(**{**vars(optim), "peak_lr": lane.peak_lr})
        return {**hyper_values(cfg, num_steps=num_steps, d_model=1), **lane.hypers}

    def inputs(first, last):
        def lane_inputs(lane):
            num = len(jax.tree.leaves(lane.examples)[0])
            at = [examples_at(num, lane.seed, n, batch_size) for n in range(first, last)]
            return jax.tree.map(lambda x: x[np.stack(at)], lane.examples)

        return stack([lane_inputs(lane) for lane in lanes])

    return train_population(
        lambda seed, hypers: init_state(seed, specs, hypers, tx),
        make_train_step(loss_fn, tx),
        seeds=[lane.seed for lane in lanes],
        hypers=stack_hypers(map(numbers, lanes)),
        inputs=inputs,
        num_steps=num_steps,
        **more,
    )


def train_classifier(
    model: Classifier,
    lanes: Sequence[Lane],
    test: Any,
    *,
    class_weights: np.ndarray | None = None,
    **more: Any,
) -> tuple[Params, np.ndarray]:
    """Trains the lanes on `Examples`; more: of `train_lanes`.

    Args:
      test: inputs of the model, n of them, the same for all lanes.
    Returns:
      Parameters of leading P, as numpy arrays, and logits f32[P, n, C] of the test at the end.
    """
    num = len(jax.tree.leaves(test)[0])

    def evaluate(state, chunks):
        return jax.lax.map(lambda x: model.forward(state.params, x), chunks)

    trained = train_lanes(
        model.specs,
        make_loss_fn(model, class_weights=class_weights),
        lanes,
        evaluate=evaluate,
        shared=jax.tree.map(lambda x: _in_chunks(np.asarray(x)), test),
        **more,
    )
    [(_, logits)] = trained.evaluations
    params = jax.device_get(trained.state.params)
    return params, logits.reshape(len(lanes), -1, logits.shape[-1])[:, :num]


def _in_chunks(x: np.ndarray) -> np.ndarray:
    """[n, ...] -> [chunks, _CHUNK, ...], zeros behind the last."""
    padded = np.pad(x, ((0, -len(x) % _CHUNK), *((0, 0),) * (x.ndim - 1)))
    return padded.reshape(-1, _CHUNK, *x.shape[1:])


def stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure along a new leading axis, as numpy arrays."""
    return jax.tree.map(lambda *x: np.stack(x), *trees)
