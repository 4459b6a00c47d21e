"""The step as a function of (state, batch): averages, skips, keys, and the ways to run it.

Most laws hold for any loss, so they are shown on a linear softmax that compiles at once; one test
takes the transformer.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit

from jaxlm.core.metrics import Mean
from jaxlm.core.params import ParamSpec
from jaxlm.models import transformer
from jaxlm.nn.cross_entropy import cross_entropy
from jaxlm.objectives.next_token import make_loss_fn
from jaxlm.optim.loss_spikes import watch_loss
from jaxlm.train.state import TrainState, init_state
from jaxlm.train.step import make_train_step

V = 13
ROOT = pathlib.Path(__file__).parents[2]
# Four rows that count differently, the third not at all.
UNEVEN = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], np.float32)


def sgd(hypers):
    return optax.sgd(hypers["lr"], momentum=0.9)


def table_loss(params, frozen, carry, hypers, batch, key):
    """A bigram model: the row of a table is the logits. Noise stands for dropout."""
    logits = params["table"][batch.tokens]
    if "noise" in hypers:
        logits = logits + hypers["noise"] * jax.random.normal(key, logits.shape)
    nll, _ = cross_entropy(logits, batch.targets)
    total, weight = jnp.sum(nll * batch.weights), jnp.sum(batch.weights)
    return total, ({"loss": Mean(total, weight)}, carry)


def table_state(seed=0, make_tx=sgd, **hypers):
    table = jnp.float32(np.random.default_rng(seed).normal(size=(V, V)))
    spec = ParamSpec(shape=(V, V), axes=("vocab", "embed"), init=lambda key, spec: table)
    return init_state(seed, {"table": spec}, {"lr": 0.5} | hypers, make_tx)


STEP = quick_jit(make_train_step(table_loss, sgd))


def assert_trees_equal(a, b):
    def same(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)

    jax.tree.map(same, a, b)


def assert_trees_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# ---- averages


def mean_loss(params, batch):
    nll, _ = cross_entropy(params["table"][batch.tokens], batch.targets)
    return jnp.sum(nll * batch.weights) / jnp.sum(batch.weights)


MEAN_GRAD = quick_jit(jax.value_and_grad(mean_loss))


@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
def test_the_gradient_is_that_of_the_mean_however_the_batch_is_cut(num_microbatches, make_batch):
    batch, state = make_batch(0, UNEVEN), table_state()
    step = quick_jit(make_train_step(table_loss, sgd, num_microbatches=num_microbatches))
    new, metrics = step(state, batch)
    value, grad = MEAN_GRAD(state.params, batch)
    # the first update of sgd is the gradient times the rate
    assert_trees_close(new.params, {"table": state.params["table"] - 0.5 * grad["table"]})
    np.testing.assert_allclose(metrics["loss"].compute(), value, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].weight, UNEVEN.sum())
    norm = np.linalg.norm(np.asarray(grad["table"], np.float64))
    np.testing.assert_allclose(metrics["grad_norm"].compute(), norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"].compute(), 0.5 * norm, rtol=1e-5)
    assert metrics["finite"].compute() == 1


def test_the_mean_of_the_microbatches_means_would_be_another_gradient(make_batch):
    batch, params = make_batch(0, UNEVEN), table_state().params
    whole = MEAN_GRAD(params, batch)[1]["table"]
    first, last = (jax.tree.map(lambda x: x[:2], batch), jax.tree.map(lambda x: x[2:], batch))
    of_means = sum(MEAN_GRAD(params, half)[1]["table"] for half in (first, last)) / 2
    assert np.abs(of_means - whole).max() > 0.1 * np.abs(whole).max()


def test_microbatches_of_the_transformer_equal_the_whole_batch(small_cfg, params_of, make_batch):
    plain = {"norm_placement": "none", "activation": "relu", "positions": "none"}
    small_cfg = dataclasses.replace(small_cfg, **plain)  # compiles sooner
    model = transformer.build(small_cfg)
    loss_fn = make_loss_fn(model, token_bytes=np.ones(V, np.int32))
    params, batch = params_of(small_cfg), make_batch(0, UNEVEN)
    results = []
    for n in (1, 2):
        state = table_state()
        state = state.replace(params=params, opt_state=sgd(state.hypers).init(params))
        results.append(quick_jit(make_train_step(loss_fn, sgd, num_microbatches=n))(state, batch))
    (whole, metrics), (cut, cut_metrics) = results
    assert_trees_close(cut.params, whole.params, atol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(cut_metrics[name].compute(), metrics[name].compute(), rtol=1e-5)


def test_a_carried_state_is_refused_with_microbatches(make_batch):
    state = table_state().replace(carry={"mean": jnp.zeros(3)})
    step = make_train_step(table_loss, sgd, num_microbatches=2)
    with pytest.raises(ValueError, match="microbatches"):
        jax.eval_shape(step, state, make_batch(0, UNEVEN))


def test_frozen_weights_are_used_but_not_changed(make_batch):
    def loss_fn(params, frozen, carry, hypers, batch, key):
        both = {"table": params["table"] + frozen["base"]}
        return table_loss(both, None, carry, hypers, batch, key)

    start = table_state()
    base = {"base": start.params["table"]}
    split = start.replace(params=jax.tree.map(jnp.zeros_like, start.params), frozen=base)
    new, _ = quick_jit(make_train_step(loss_fn, sgd))(split, make_batch(0, UNEVEN))
    whole, _ = STEP(start, make_batch(0, UNEVEN))
    assert_trees_equal(new.frozen, base)
    np.testing.assert_allclose(new.params["table"] + base["base"], whole.params["table"], atol=1e-6)


def test_a_carry_is_handed_to_the_next_step(make_batch):
    def loss_fn(params, frozen, carry, hypers, batch, key):
        total, (metrics, _) = table_loss(params, frozen, carry, hypers, batch, key)
        return total, (metrics, {"seen": carry["seen"] + jnp.sum(batch.tokens)})

    step, batch = quick_jit(make_train_step(loss_fn, sgd)), make_batch(0, UNEVEN)
    state = table_state().replace(carry={"seen": jnp.zeros((), jnp.int32)})
    for n in (1, 2):
        state, _ = step(state, batch)
        assert state.carry["seen"] == n * batch.tokens.sum()


# ---- steps that are not finite


@pytest.fixture(scope="module")
def skipping():
    return quick_jit(make_train_step(table_loss, sgd, skip_nonfinite=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number(bad, skipping, make_batch):
    batch = make_batch(0, UNEVEN)
    state, _ = skipping(table_state(), batch)  # so that the momentum is not zero
    weights = UNEVEN.copy()
    weights[0, 0] = bad
    new, metrics = skipping(state, dataclasses.replace(batch, weights=weights))
    assert metrics["finite"].compute() == 0
    assert new.step == state.step + 1
    assert_trees_equal(new.replace(step=state.step), state)


def test_a_batch_in_which_nothing_counts_is_skipped(skipping, make_batch):
    state = table_state()
    new, metrics = skipping(state, make_batch(0, np.zeros_like(UNEVEN)))
    assert metrics["finite"].compute() == 0
    assert_trees_equal(new.params, state.params)


def test_a_step_that_is_skipped_does_not_repeat_the_jump_of_the_one_before(make_batch):
    """Its own loss is no number; the optimizer's state, which goes back, still tells of a jump."""
    watched = watch_loss(sgd, 3.0, skip=False)
    step = quick_jit(make_train_step(table_loss, watched, skip_nonfinite=True))
    state, _ = step(table_state(make_tx=watched), make_batch(0, UNEVEN))
    state = state.replace(opt_state=state.opt_state._replace(spike=jnp.array(True)))
    _, metrics = step(state, make_batch(0, UNEVEN * np.nan))
    assert metrics["finite"].compute() == 0 and metrics["spike"].compute() == 0


def test_a_finite_step_is_the_same_whether_or_not_others_would_be_skipped(skipping, make_batch):
    assert_trees_close(
        skipping(table_state(), make_batch(0, UNEVEN))[0].params,
        STEP(table_state(), make_batch(0, UNEVEN))[0].params,
    )


def test_without_the_skip_a_bad_step_shows_in_the_weights(make_batch):
    batch = dataclasses.replace(make_batch(0, UNEVEN), weights=UNEVEN * np.nan)
    new, metrics = STEP(table_state(), batch)
    assert metrics["finite"].compute() == 0
    assert np.isnan(new.params["table"]).any()


# ---- a function of (state, batch)


def stacked(batches):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def test_a_step_depends_on_state_and_batch_alone(make_batch):
    state, batch = table_state(noise=1.0), make_batch(0, UNEVEN)
    first = STEP(state, batch)
    STEP(first[0], make_batch(1, UNEVEN))
    again = STEP(state, batch)
    assert_trees_equal(again, first)
    assert first[0].step == 1
    assert_trees_equal(first[0].key, state.key)


def test_randomness_changes_with_the_step_and_with_the_seed(make_batch):
    batch, state = make_batch(0, UNEVEN), table_state(noise=1.0)
    losses = [
        float(STEP(at, batch)[1]["loss"].total)
        for at in (
            state,
            state.replace(step=jnp.int32(1)),
            state.replace(key=jax.random.key(99)),
        )
    ]
    assert len(set(losses)) == 3


def test_each_microbatch_has_randomness_of_its_own(make_batch):
    rows = np.ones((2, 5), np.float32)
    batch = make_batch(0, rows)
    batch = jax.tree.map(lambda x: np.stack([x[0], x[0]]), batch)  # two equal rows

    def loss_fn(params, frozen, carry, hypers, batch, key):
        total, (metrics, carry) = table_loss(params, frozen, carry, hypers, batch, key)
        draw = jax.random.normal(key)
        return total, (metrics | {"square": Mean(draw**2, 1.0), "draw": Mean(draw, 1.0)}, carry)

    step = quick_jit(make_train_step(loss_fn, sgd, num_microbatches=2))
    _, metrics = step(table_state(), batch)
    # equal draws a would give (2a)^2 = 2 * (a^2 + a^2)
    assert abs(metrics["draw"].total ** 2 - 2 * metrics["square"].total) > 1e-3


def test_the_state_holds_only_arrays_and_follows_from_its_seed():
    state = table_state()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert {x.dtype for x in state.hypers.values()} == {jnp.dtype("float32")}
    assert state.step == 0
    assert isinstance(state, TrainState)
    assert_trees_equal(table_state().key, state.key)
    other = jax.random.key_data(table_state(seed=1).key)
    assert not np.array_equal(jax.random.key_data(state.key), other)


def test_scanned_steps_equal_single_calls(make_batch):
    batches = [make_batch(seed, UNEVEN) for seed in range(3)]
    state = single = table_state(noise=0.1)
    each = []
    for batch in batches:
        single, metrics = STEP(single, batch)
        each.append(metrics)
    step = make_train_step(table_loss, sgd)
    scanned, metrics = quick_jit(lambda *args: jax.lax.scan(step, *args))(state, stacked(batches))
    assert scanned.step == 3
    assert_trees_close(scanned.params, single.params)
    assert_trees_close(scanned.opt_state, single.opt_state)
    assert_trees_close(metrics, jax.tree.map(lambda *x: jnp.stack(x), *each), atol=1e-5)


# ---- numbers are traced


def counting(make_tx=sgd):
    traces = []

    def loss_fn(*args):
        traces.append(1)
        return table_loss(*args)

    return quick_jit(make_train_step(loss_fn, make_tx)), traces


def test_another_learning_rate_is_no_other_program(make_batch):
    step, traces = counting()
    batch = make_batch(0, UNEVEN)
    moved = []
    for lr in (0.1, 0.2, 0.4):
        state = table_state(lr=lr)
        new, _ = step(state, batch)
        moved.append(np.abs(new.params["table"] - state.params["table"]).max())
    assert len(traces) == 1
    np.testing.assert_allclose(moved, moved[0] * np.array([1, 2, 4]), rtol=1e-4)


def test_a_population_mapped_over_its_numbers_equals_separate_runs(make_batch):
    batch = make_batch(0, UNEVEN)
    members = [table_state(seed, lr=lr, noise=0.1) for seed, lr in ((0, 0.1), (1, 0.2), (2, 0.0))]
    population = jax.tree.map(lambda *x: jnp.stack(x), *members)
    step = quick_jit(jax.vmap(make_train_step(table_loss, sgd), in_axes=(0, None)))
    for _ in range(2):
        population, _ = step(population, batch)
    for p, member in enumerate(members):
        alone = STEP(STEP(member, batch)[0], batch)[0]
        np.testing.assert_allclose(population.params["table"][p], alone.params["table"], atol=1e-6)
    # the third has a rate of zero
    np.testing.assert_array_equal(population.params["table"][2], members[2].params["table"])


# ---- several devices

TWO_DEVICES = """
import sys
sys.path[:0] = ["tests", "tests/train"]
import jax, numpy as np
from jaxlm.data.batches import Batch
from jaxlm.train.step import make_train_step
from test_step import STEP, UNEVEN, V, sgd, table_loss, table_state
from jaxlm.core.metrics import Mean

assert jax.device_count() == 2
tokens, targets = np.random.default_rng(0).integers(V, size=(2, 4, 5)).astype(np.int32)
batch = Batch(tokens=tokens, targets=targets, weights=UNEVEN, segment_ids=None)
halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
twice = jax.tree.map(lambda x: np.stack([x, x]), table_state().replace(key=()))
keys = jax.random.wrap_key_data(np.stack([jax.random.key_data(table_state().key)] * 2))

def loss_fn(params, frozen, carry, hypers, batch, key):
    total, (metrics, carry) = table_loss(params, frozen, carry, hypers, batch, key)
    draw = jax.random.normal(key)
    return total, (metrics | {"draw": Mean(draw, 1.0), "square": Mean(draw**2, 1.0)}, carry)

step = jax.pmap(make_train_step(loss_fn, sgd, axis_name="devices"), axis_name="devices")
many, metrics = step(twice.replace(key=keys), halves)
one, expected = STEP(table_state(), batch)
for d in range(2):
    np.testing.assert_allclose(many.params["table"][d], one.params["table"], atol=1e-6)
    for name in expected:
        np.testing.assert_allclose(
            metrics[name].compute()[d], expected[name].compute(), rtol=1e-5, err_msg=name
        )
gap = abs(metrics["draw"].total[0] ** 2 - 2 * metrics["square"].total[0])
print("own" if gap > 1e-3 else "shared")
"""


@pytest.fixture(scope="module")
def two_devices():
    """What a child process with two forced CPU devices printed."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    child = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()


def test_uneven_shards_on_two_devices_equal_one_device(two_devices):
    assert two_devices in ("own", "shared")


def test_each_device_has_randomness_of_its_own(two_devices):
    assert two_devices == "own"
