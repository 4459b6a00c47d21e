"""One structure of run as pure functions of numbers: what one compilation serves.

Two configs that differ only in numbers (rates, decays, seeds, scales, ranks) have one program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import with_traced
from jaxlm.core.metrics import Mean
from jaxlm.evals.perplexity import batch_metrics
from jaxlm.models import kinds, lora
from jaxlm.models.api import LanguageModel
from jaxlm.objectives import next_token
from jaxlm.optim import config as optim_config
from jaxlm.optim.loss_spikes import watch_loss
from jaxlm.optim.optimizers import make_tx
from jaxlm.train.calls import Shardings, jit_steps, pmap_steps, split_rows, with_frozen
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import PMAP_AXIS, Layout
from jaxlm.train.state import TrainState, init_state, jit_init
from jaxlm.train.step import make_train_step

# Numbers that a program can be given, beside the model's own and all of optim's and LoRA's.
LOSS_NUMBERS = tuple(field.name for field in dataclasses.fields(next_token.LossConfig))
# Of those, the ones that are left out of a program where all its runs have them at 0.
TERMS = ("dropout", *LOSS_NUMBERS)
OPTIM_CHOICES = ("name", "schedule")  # every other field of OptimConfig is a number


class Program(NamedTuple):
    """The functions of one structure.

    specs: of what is trained: the weights, or adapters.
    model: hypers -> LanguageModel. weights: (params, frozen, hypers) -> what the model computes
      with, adapters merged.
    init: (seed, hypers) -> TrainState, without its frozen part.
    step: (state, batch) -> (state, metrics).
    evaluate: (state, batches [E, B, S]) -> {"loss", "bits_per_byte": Mean} over all of them.
    """

    specs: dict[str, Any]
    model: Callable[[dict[str, Array]], LanguageModel]
    weights: Callable[[Params, Params, dict[str, Array]], Params]
    init: Callable[..., TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, Any]]
    evaluate: Callable[[TrainState, Any], dict[str, Mean]]


def make_program(
    cfg: RunConfig,
    token_bytes: np.ndarray,
    traced: Sequence[str] = (),
    *,
    axis_name: str | None = None,
    **build: Any,
) -> Program:
    """The program of a config.

    Args:
      token_bytes: i32[V], UTF-8 bytes of each id.
      traced: names out of `cfg.model.NUMBERS` and LOSS_NUMBERS whose values come from `hypers` and
        not from `cfg`, as `hyper_values(cfg, traced)` gives them.
      axis_name: as of `make_train_step`. build: options of the model's `build`, such as attend=.
    """
    names = [name for name in traced if name in cfg.model.NUMBERS and name != "dropout"]

    def model_config(hypers):
        return with_traced(cfg.model, {name: hypers[name] for name in names})

    def model(hypers):
        return kinds.build(model_config(hypers), **build)

    def loss_fn(params, frozen, carry, hypers, batch, key):
        loss = next_token.make_loss_fn(
            model(hypers), token_bytes=token_bytes, vocab_chunk=cfg.train.vocab_chunk
        )
        if cfg.lora.rank is not None:
            loss = lora.adapted_loss(loss, cfg.lora.scaling)
        return loss(params, frozen, carry, hypers, batch, key)

    def weights(params, frozen, hypers):
        if cfg.lora.rank is None:
            return params
        return lora.merge(frozen, params, hypers, cfg.lora.scaling)

    def init(seed, hypers):
        language_model = model(hypers)
        specs = trained_specs(cfg, language_model.specs)
        carry = language_model.init_carry(cfg.data.batch_size)
        return init_state(seed, specs, hypers, build_tx, carry=carry)

    def evaluate(state, batches):
        language_model = model(state.hypers)
        params = weights(state.params, state.frozen, state.hypers)
        params = language_model.settle(params, state.carry)

        def add(total, batch):
            part = batch_metrics(language_model, params, batch, token_bytes, cfg.train.vocab_chunk)
            return jax.tree.map(jnp.add, total, part), None

        nothing = Mean(jnp.float32(0), jnp.float32(0))
        totals, _ = jax.lax.scan(add, {"loss": nothing, "bits_per_byte": nothing}, batches)
        return totals

    specs = trained_specs(cfg, kinds.param_specs(cfg.model))
    build_tx = make_tx(cfg.optim, specs)
    if cfg.train.spike_sigmas is not None:
        skip = cfg.train.on_nonfinite == "skip"
        build_tx = watch_loss(build_tx, cfg.train.spike_sigmas, skip=skip)
    step = make_train_step(
        loss_fn,
        build_tx,
        num_microbatches=cfg.train.num_microbatches,
        axis_name=axis_name,
        skip_nonfinite=cfg.train.on_nonfinite == "skip",
    )
    return Program(specs, model, weights, init, step, evaluate)


class PlacedProgram(NamedTuple):
    """A program on its devices.

    specs: of what is trained. state: TrainState of shapes and shardings. init: () -> the state
    before the first step, without its frozen part; it is made where it is to lie.
    run: (state, batches [steps, B, S]) -> (state, metrics [steps]); it overwrites the state.
    arrange: batches -> what the program in `run` reads. lower: batches of all processes, or their
    shapes -> that program, lowered.
    """

    specs: dict[str, Any]
    state: TrainState
    init: Callable[[], TrainState]
    run: Callable[[TrainState, Any], tuple[TrainState, Any]]
    arrange: Callable[[Any], Any]
    lower: Callable[[Any], Any]


def place_program(
    cfg: RunConfig,
    token_bytes: np.ndarray,
    layout: Layout,
    hypers: dict[str, float],
    **build: Any,
) -> PlacedProgram:
    """The program of a config for the devices of a layout; token_bytes, build: as `make_program`.

    Args:
      hypers: as `hyper_values(cfg)` gives them.
    """
    pmap = cfg.train.parallel == "pmap"
    if pmap:  # each device runs a program of its own, in which there is nothing to place
        program = make_program(cfg, token_bytes, axis_name=PMAP_AXIS, **build)
    else:
        options: dict[str, Any] = {**build, **layout.functions}
        program = make_program(cfg, token_bytes, **options)

    def init():
        return program.init(cfg.seed, hypers)

    frozen_specs = {} if cfg.lora.rank is None else kinds.param_specs(cfg.model)
    state = layout.state(jax.eval_shape(init), program.specs, frozen_specs)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    devices = list(layout.mesh.devices.flat)
    if pmap:
        steps = pmap_steps(program.step, PMAP_AXIS, devices)
    else:
        steps = jit_steps(program.step, Shardings(where, layout.batches, layout.whole))

    def split(batches):
        return split_rows(batches, len(devices)) if pmap else batches

    def arrange(batches):
        return split(batches) if pmap else layout.place(batches, cfg.data.batch_size)

    return PlacedProgram(
        specs=program.specs,
        state=state,
        init=jit_init(init, devices[0].platform, out_shardings=where.replace(frozen={})),
        run=with_frozen(lambda moving, frozen, xs: steps(moving, frozen, arrange(xs))),
        arrange=arrange,
        lower=lambda xs: steps.lower(
            state.replace(frozen={}), state.frozen, jax.eval_shape(split, xs)
        ),
    )


def trained_specs(cfg: RunConfig, specs: dict[str, Any]) -> dict[str, Any]:
    """What the run trains of a model with `specs`: its weights, or adapters where it has some."""
    return specs if cfg.lora.rank is None else lora.adapter_specs(specs, cfg.lora)


def hyper_values(cfg: RunConfig, traced: Sequence[str] = ()) -> dict[str, float]:
    """Every number that a run's program is given.

    Args:
      traced: numbers that are given even where the program of `cfg` alone would not need them.
    """
    optim = optim_config.hyper_values(
        cfg.optim, num_steps=cfg.train.num_steps, d_model=cfg.model.d_model or 0
    )
    loss, adapters = next_token.hyper_values(cfg.loss), lora.hyper_values(cfg.lora)
    dropout = {"dropout": cfg.model.dropout} if cfg.model.dropout else {}
    more = {
        name: float(getattr(cfg.loss if name in LOSS_NUMBERS else cfg.model, name))
        for name in traced
    }
    return {**optim, **loss, **adapters, **dropout, **more}


class Group(NamedTuple):
    """Runs that one program trains.

    cfg: its structure; the numbers in it are those of the first run, the LoRA rank the greatest.
    traced: as `make_program` takes it. members: places in the list that was grouped.
    """

    cfg: RunConfig
    traced: tuple[str, ...]
    members: tuple[int, ...]


def group_by_structure(configs: Sequence[RunConfig]) -> list[Group]:
    """The fewest groups of runs of one structure each, in order of first appearance."""
    members: dict[RunConfig, list[int]] = {}
    for place, cfg in enumerate(configs):
        members.setdefault(structure(cfg), []).append(place)
    return [_group(configs, places) for places in members.values()]


def _group(configs: Sequence[RunConfig], places: list[int]) -> Group:
    first = configs[places[0]]
    traced = []
    for name in (*first.model.NUMBERS, *LOSS_NUMBERS):
        values = {
            getattr(configs[p].loss if name in LOSS_NUMBERS else configs[p].model, name)
            for p in places
        }
        if len(values) > 1 or (name in TERMS and values != {0}):
            traced.append(name)
    if first.lora.rank is not None:
        rank = max(configs[place].lora.rank or 0 for place in places)
        first = dataclasses.replace(first, lora=dataclasses.replace(first.lora, rank=rank))
    return Group(first, tuple(traced), tuple(places))


def structure(cfg: RunConfig) -> RunConfig:
    """`cfg` with each number that can be traced set to one and the same value.

    Configs with equal structures share a program. Whether the gradient is clipped and whether
    there is a softcap or an adapter is structure; how strongly, how much and of which rank is not.
    """
    optim = {f.name for f in dataclasses.fields(cfg.optim)} - set(OPTIM_CHOICES)
    return dataclasses.replace(
        cfg,
        seed=0,
        model=_with_defaults(cfg.model, cfg.model.NUMBERS),
        loss=_with_defaults(cfg.loss, LOSS_NUMBERS),
        optim=_with_defaults(cfg.optim, optim),
        lora=_with_defaults(cfg.lora, ("rank", "alpha")),
    )


# Fields for which None is another structure than a number.
_STRUCTURAL_NONE = {"clip_norm": 1.0, "attention_softcap": 1.0, "logit_softcap": 1.0, "rank": 1}


def _with_defaults(part: Any, names) -> Any:
    defaults = {f.name: f.default for f in dataclasses.fields(part) if f.name in names}
    for name, value in _STRUCTURAL_NONE.items():
        if name in defaults:
            defaults[name] = None if getattr(part, name) is None else value
    return dataclasses.replace(part, **defaults)
