"""A lane of a population is the run done alone, on one device or several, all at once or not."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.core import trees
from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.core.metrics import Mean
from jaxlm.data.batches import Batch
from jaxlm.train.config import RunConfig
from jaxlm.train.population import compile_population, stack_hypers, train_population
from jaxlm.train.program import group_by_structure, hyper_values, make_program, structure
from jaxlm.train.state import TrainState

V, STEPS = 13, 6
BASE = apply_overrides(
    RunConfig(),
    {
        "model.vocab_size": V,
        "model.context_length": 8,
        "model.num_layers": 1,
        "model.d_model": 16,
        "model.num_heads": 2,
        "optim.warmup_steps": 2,
        "train.num_steps": STEPS,
        "train.steps_per_call": 1,
    },
)
# Every number that a lane may have of its own, each far enough from its default to matter.
POINTS = [
    {},
    {
        "optim.peak_lr": 0.01,
        "optim.warmup_steps": 0,
        "seed": 1,
        "optim.weight_decay": 0.5,
        "optim.b1": 0.5,
        "optim.b2": 0.8,
        "optim.eps": 1e-3,
        "optim.clip_norm": 0.05,
        "loss.label_smoothing": 0.2,
        "loss.z_loss": 0.01,
    },
    {
        "model.dropout": 0.3,
        "model.residual": 0.5,
        "model.output_init": 0.1,
        "seed": 3,
        "model.init_scale": 2.0,
        "model.rope_theta": 100.0,
        "model.norm_eps": 0.1,
    },
]
CONFIGS = [apply_overrides(BASE, point) for point in POINTS]
TOKEN_BYTES = np.ones(V, np.int32)


def inputs(first, last, lanes=len(POINTS)):
    """Each lane has a text of its own."""
    ids = np.random.default_rng(0).integers(V, size=(lanes, STEPS, 4, 9)).astype(np.int32)
    ids = ids[:, first:last]
    ones = np.ones(ids[..., 1:].shape, np.float32)
    return Batch(tokens=ids[..., :-1], targets=ids[..., 1:], weights=ones)


@pytest.fixture(scope="module")
def group():
    [group] = group_by_structure(CONFIGS)
    return group


@pytest.fixture(scope="module")
def program(group):
    return make_program(group.cfg, TOKEN_BYTES, group.traced)


@pytest.fixture(scope="module")
def hypers(group):
    return stack_hypers(hyper_values(cfg, group.traced) for cfg in CONFIGS)


@pytest.fixture(scope="module")
def trained(program, hypers):
    seeds = [cfg.seed for cfg in CONFIGS]
    shared = jax.tree.map(lambda x: x[0], inputs(0, 2))
    return train_population(
        program.init,
        program.step,
        seeds=seeds,
        hypers=hypers,
        inputs=inputs,
        num_steps=STEPS,
        eval_every=3,
        evaluate=program.evaluate,
        shared=shared,
    )


def test_numbers_are_no_structure_and_choices_are(group):
    assert set(group.traced) >= {"dropout", "residual", "output_init", "init_scale", "rope_theta"}
    others = [
        {"model.num_layers": 2},
        {"optim.clip_norm": None},
        {"optim.schedule": "constant"},
        {"model.logit_softcap": 30.0},
        {"train.num_steps": 2 * STEPS},
    ]
    configs = [*CONFIGS, *(apply_overrides(BASE, point) for point in others)]
    groups = group_by_structure(configs)
    assert [g.members for g in groups] == [(0, 1, 2), (3,), (4,), (5,), (6,), (7,)]
    assert structure(configs[0]) == structure(configs[2]) != structure(configs[3])


def test_ranks_share_the_program_of_the_greatest():
    lora = [apply_overrides(BASE, {"lora.rank": r, "lora.alpha": r}) for r in (2, 8, 4)]
    [group] = group_by_structure(lora)
    assert group.cfg.lora.rank == 8 and group.members == (0, 1, 2)
    assert len(group_by_structure([*lora, BASE])) == 2


@pytest.mark.parametrize("lane", range(len(POINTS)))
def test_a_lane_is_the_run_done_alone(trained, solo_step, lane):
    """To float32 rounding: the two programs sum in another order. After 6 steps of AdamW that is
    2e-6 of a loss of 2.6; weights of a tiny gradient, which Adam divides by its own size, may
    differ by a hundredth of the learning rate."""
    cfg = CONFIGS[lane]
    state, losses = solo_step(lane)
    np.testing.assert_allclose(trained.metrics["loss"][lane], losses, rtol=2e-6)
    for path, solo in trees.flatten(state.params).items():
        ours = trees.flatten(trained.state.params)[path][lane]
        np.testing.assert_allclose(ours, solo, atol=0.01 * cfg.optim.peak_lr, err_msg=path)


def test_lanes_differ(trained):
    losses = trained.metrics["loss"][:, -1]
    assert len({round(float(x), 5) for x in losses}) == len(POINTS)


@pytest.fixture(scope="module")
def solo_step(group):
    """`solo_step(lane)`: its state and losses, by a program in which its numbers are constants."""

    def run(lane):
        cfg = CONFIGS[lane]
        program = make_program(cfg, TOKEN_BYTES)
        hypers = hyper_values(cfg)
        state = quick_jit(lambda: program.init(cfg.seed, hypers))()
        step, losses = quick_jit(program.step), []
        for n in range(STEPS):
            batch = jax.tree.map(lambda x: x[lane, 0], inputs(n, n + 1))
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"].compute()))
        return state, losses

    return run


def test_evaluations_come_when_they_are_due_and_are_of_the_lane(trained, program, hypers):
    assert [step for step, _ in trained.evaluations] == [3, 6]
    _, scores = trained.evaluations[-1]
    lane = jax.tree.map(lambda x: x[2], trained.state.replace(frozen={}))
    shared = jax.tree.map(lambda x: x[0], inputs(0, 2))
    want = quick_jit(program.evaluate)(lane, shared)
    np.testing.assert_allclose(scores["loss"].total[2], want["loss"].total, rtol=1e-6)
    assert scores["loss"].weight[2] == 2 * 4 * 8


def quadratic():
    """A population that compiles in a moment: one weight that moves towards its target."""

    def init(seed, hypers):
        start = jax.random.normal(jax.random.key(seed), (64,))
        return TrainState(jnp.int32(0), {"w": start}, {}, {}, hypers, {}, jax.random.key(seed))

    def step(state, x):
        w = state.params["w"]
        return state.replace(
            params={"w": w - state.hypers["rate"] * (w - x)}, step=state.step + 1
        ), {"loss": Mean(jnp.sum((w - x) ** 2), jnp.float32(1))}

    return init, step


def run_quadratic(num_lanes, **options):
    init, step = quadratic()
    hypers = {"rate": np.linspace(0.1, 0.5, num_lanes).astype(np.float32)}
    xs = np.random.default_rng(1).normal(size=(num_lanes, 5, 64)).astype(np.float32)
    population = compile_population(
        init, step, num_lanes=num_lanes, hypers=hypers, xs=xs, **options
    )
    state = population.init(np.arange(num_lanes, dtype=np.int32), hypers)
    state, metrics, _ = population.run(state, {}, xs, None, False)
    return population, np.asarray(state.params["w"]), metrics["loss"].total


def test_fewer_lanes_at_once_where_memory_is_short_and_the_same_result():
    whole, params, _ = run_quadratic(6)
    assert whole.lanes_at_once == 6
    tight, fewer, _ = run_quadratic(6, bytes_free=whole.bytes_needed - 1)
    assert tight.lanes_at_once < 6 and tight.bytes_needed < whole.bytes_needed
    np.testing.assert_allclose(fewer, params, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="one of 6 lanes at a time needs"):
        run_quadratic(6, bytes_free=100)


def test_lanes_are_spread_over_devices(tmp_path):
    """In a process with four devices: two lanes on each of three, for six do not split in four."""
    out = tmp_path / "params.npy"
    folders = [str(path) for path in pathlib.Path(__file__).parents[:2]]
    code = (
        f"import sys, numpy as np; sys.path[:0] = {folders!r}\n"
        "from test_population import run_quadratic\n"
        "population, params, _ = run_quadratic(6)\n"
        "assert population.lanes_at_once == 2, population.lanes_at_once\n"
        f"np.save({str(out)!r}, params)"
    )
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    flags = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, check=True)
    np.testing.assert_allclose(np.load(out), run_quadratic(6)[1], rtol=1e-6, atol=1e-6)


def test_the_frozen_part_is_shared_and_not_copied(program, hypers):
    """Its bytes are among the arguments of the program once, however many lanes there are."""
    init, step = quadratic()

    def with_frozen(state, x):
        state, metrics = step(state, x)
        return state.replace(
            params={"w": state.params["w"] + 0 * state.frozen["base"][:64]}
        ), metrics

    base = {"base": jnp.ones(100_000)}
    needed = {}
    for lanes in (2, 8):
        hypers = {"rate": np.ones(lanes, np.float32)}
        xs = np.zeros((lanes, 5, 64), np.float32)
        needed[lanes] = compile_population(
            init, with_frozen, num_lanes=lanes, hypers=hypers, xs=xs, frozen=base
        ).bytes_needed
    assert needed[8] - needed[2] < 50_000 < 400_000 < needed[2]


def test_a_call_longer_than_the_run_is_refused(program, hypers):
    with pytest.raises(ValueError, match="must divide"):
        train_population(
            program.init,
            program.step,
            seeds=[0],
            hypers={n: v[:1] for n, v in hypers.items()},
            inputs=inputs,
            num_steps=STEPS,
            eval_every=4,
        )


def test_groups_keep_the_numbers_that_do_not_vary(group):
    same = [dataclasses.replace(c, seed=i) for i, c in enumerate([CONFIGS[2], CONFIGS[2]])]
    [alone] = group_by_structure(same)
    assert alone.traced == ("dropout",) and alone.cfg.model.residual == 0.5
