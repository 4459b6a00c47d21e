"""One structure as one program: it starts every lane, measures its gradients, and trains it."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grad_norm_depth import OUTPUTS, PLAIN
from experiments.grad_norm_depth.readings import LAYERS, STREAM
from experiments.texts import lane_batches, plays
from jaxlm.analysis.gradient_norms import gradient_norms
from jaxlm.core import trees
from jaxlm.core.arrays import Array
from jaxlm.core.config import apply_overrides
from jaxlm.core.results import Row
from jaxlm.data.batches import Batch
from jaxlm.nn.cross_entropy import cross_entropy
from jaxlm.train.config import RunConfig
from jaxlm.train.population import compile_population, means, stack_hypers
from jaxlm.train.program import Program, hyper_values, make_program

TRACED = ("residual", "output_init")
EXAMPLES_AT_ONCE = 8  # gradients of single examples held in memory, for each lane
UNIT = "nats/token"  # of a loss, and of a norm of its gradient: weights have no unit


class Lane(NamedTuple):
    """What one lane of the program differs in. output: a name in OUTPUTS."""

    residual: float
    output: str
    warmup_steps: int
    seed: int


def lanes_of(cell: dict[str, Any]) -> list[Lane]:
    """Every start once, trained with the longest warmup; with a residual also with the others.

    What cannot learn is trained once too, for its gradients during training.
    """
    longest = max(cell["warmups"])
    return [
        Lane(residual, output, warmup, seed)
        for residual in (1.0, 0.0)
        for output in OUTPUTS
        for warmup in cell["warmups"]
        if warmup == longest or (residual and cell["trained"])
        for seed in range(cell["num_seeds"])
    ]


def run_config(cell: dict[str, Any], lane: Lane) -> RunConfig:
    depth, num_steps = cell["depth"], cell["num_steps"]
    scale = 1.0 if lane.output == PLAIN else (2 * depth) ** -0.5
    return apply_overrides(
        RunConfig(),
        {
            "seed": lane.seed,
            "model.vocab_size": plays().tokenizer.vocab_size,
            "model.num_layers": depth,
            "model.norm_placement": cell["norm_placement"],
            "model.residual": lane.residual,
            "model.output_init": scale,
            **{f"model.{name}": cell[name] for name in ("context_length", "d_model", "num_heads")},
            **{f"model.{name}": cell[name] for name in ("norm", "activation")},
            "data.batch_size": cell["batch_size"],
            "optim.name": "adam",
            "optim.b2": cell["adam_b2"],
            "optim.clip_norm": None,  # a clip would hide what is asked about
            "optim.schedule": "warmup_stable_decay",
            "optim.decay_steps": 0,
            "optim.peak_lr": cell["peak_lr"],
            "optim.warmup_steps": lane.warmup_steps,
            "train.num_steps": num_steps,
            "train.steps_per_call": 1,
            "train.eval_every": num_steps,
            "train.save_every": num_steps,
        },
    )


def run_cell(cell: dict[str, Any]) -> list[Row]:
    """The rows of one structure."""
    lanes = lanes_of(cell)
    return rows_of(cell, lanes, *train_and_measure(cell, lanes))


def rows_of(
    cell: dict[str, Any],
    lanes: list[Lane],
    measured: list[tuple[int, dict[str, np.ndarray]]],
    losses: np.ndarray,
) -> list[Row]:
    """What `train_and_measure` returned, as rows; losses are means of `log_every` steps."""
    rows = []
    for step, values in measured:
        for place, lane in enumerate(lanes):
            if step or lane.warmup_steps == max(cell["warmups"]):  # before training they are one
                of_lane = {name: value[place] for name, value in values.items()}
                rows += gradient_rows(cell, lane, step, of_lane)
    every = cell["log_every"]
    for place, lane in enumerate(lanes):
        for done in range(every, losses.shape[1] + 1, every):
            value = losses[place, done - every : done].mean(dtype=np.float64)
            fields = fields_of(cell, lane, done)
            rows.append(Row(fields, lane.seed, done, "training_loss", float(value), UNIT))
    return rows


def fields_of(cell: dict[str, Any], lane: Lane, step: int) -> dict[str, Any]:
    fields = {
        "depth": cell["depth"],
        "norm_placement": cell["norm_placement"],
        "residual": bool(lane.residual),
        "output": lane.output,
    }
    return fields | ({"warmup_steps": lane.warmup_steps} if step else {})


def gradient_rows(
    cell: dict[str, Any], lane: Lane, step: int, values: dict[str, np.ndarray]
) -> list[Row]:
    """Norms by layer (from 1), of the whole gradient, and of the gradients of single examples."""
    fields = fields_of(cell, lane, step)
    rows = [
        Row({**fields, "layer": layer}, lane.seed, step, metric, float(value), UNIT)
        for metric, norms in ((LAYERS, values["layers"]), (STREAM, values["stream"]))
        for layer, value in enumerate(norms, 1)
    ]
    each = values["examples"].astype(np.float64)
    whole = {
        "gradient_norm": values["whole"],
        "example_gradient_norm_rms": np.sqrt(np.mean(np.square(each))),
        "example_gradient_norm_min": each.min(),
        "example_gradient_norm_max": each.max(),
    }
    return rows + [
        Row(fields, lane.seed, step, metric, float(value), UNIT) for metric, value in whole.items()
    ]


def train_and_measure(
    cell: dict[str, Any], lanes: list[Lane]
) -> tuple[list[tuple[int, dict[str, np.ndarray]]], np.ndarray]:
    """Runs all lanes in one program: of one step, or only measuring where the cell is not trained.

    Returns:
      [(updates done, what `measure_gradients` gives, of leading P)], and losses f32[P, num_steps].
    """
    configs = [run_config(cell, lane) for lane in lanes]
    seeds = np.array([lane.seed for lane in lanes], np.int32)
    hypers = stack_hypers(hyper_values(cfg, TRACED) for cfg in configs)
    hypers["seed"] = seeds.astype(np.float32)
    program, examples = program_of(cell), stack_examples(cell)
    inputs, step, num_steps = _no_inputs(len(lanes)), _no_step, 0
    if cell["trained"]:
        sizes = {name: cell[name] for name in ("batch_size", "context_length")}
        inputs = lane_batches(plays().train, seeds.tolist(), **sizes)
        step, num_steps = program.step, cell["num_steps"]
    population = compile_population(
        program.init,
        step,
        num_lanes=len(lanes),
        hypers=hypers,
        xs=inputs(0, 1),
        evaluate=functools.partial(measure_gradients, program),
        shared=examples,
    )

    def run(state, n, due):
        state, metrics, values = population.run(state, {}, inputs(n, n + 1), examples, due)
        return state, metrics, jax.device_get(values) if due else None

    # A step at a rate of 0 changes no weight: what is measured after it is the beginning.
    at_rest = {**hypers, "peak_lr": np.zeros_like(hypers["peak_lr"])}
    _, _, values = run(population.init(seeds, at_rest), 0, True)
    measured, losses = [(0, values)], [np.zeros((len(lanes), 0), np.float32)]
    state = population.init(seeds, hypers) if num_steps else None
    for n in range(num_steps):
        state, metrics, values = run(state, n, n + 1 in cell["measured_steps"])
        losses.append(means(metrics)["loss"])
        if values is not None:
            measured.append((n + 1, values))
    return measured, np.concatenate(losses, axis=1)


def _no_step(state, _):
    return state, {}


def _no_inputs(num_lanes):
    return lambda first, last: np.zeros((num_lanes, last - first), np.float32)


def program_of(cell: dict[str, Any]) -> Program:
    cfg = run_config(cell, lanes_of(cell)[0])
    return make_program(cfg, np.ones(cfg.model.vocab_size, np.int32), TRACED)


def stack_examples(cell: dict[str, Any]) -> Batch:
    """[seeds, B, S]: what gradients are measured on, windows that no lane is trained on."""
    sizes = {"batch_size": cell["num_examples"], "context_length": cell["context_length"]}
    first = lane_batches(plays().validation, range(cell["num_seeds"]), **sizes)(0, 1)
    return jax.tree.map(lambda x: x[:, 0], first)


def measure_gradients(program: Program, state: Any, examples: Batch) -> dict[str, Array]:
    """Norms of the gradient of the mean loss of the lane's examples, and of each one's own."""
    model = program.model(state.hypers)
    mine = jax.tree.map(lambda x: x[state.hypers["seed"].astype(jnp.int32)], examples)

    def loss_fn(params, probes, example):
        x = model.hidden(params, example.tokens[None], probes=probes)
        return jnp.mean(cross_entropy(model.unembed(params, x), example.targets[None])[0])

    num_layers = trees.flatten(program.specs)["blocks/wq"].shape[0]
    (num_examples, length), width = mine.tokens.shape, state.params["embed"].shape[1]
    norms = gradient_norms(
        loss_fn,
        state.params,
        jnp.zeros((num_layers, 1, length, width)),
        mine,
        program.specs,
        at_once=math.gcd(num_examples, EXAMPLES_AT_ONCE),
    )
    return norms._asdict()
