"""Schedules against closed forms written here in numpy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.optim import schedules
from jaxlm.optim.config import OptimConfig, hyper_values

PEAK, LOW, WARMUP, DECAY, TOTAL, D_MODEL = 3e-3, 2e-4, 10, 25, 100, 64
HYPERS = {
    "peak_lr": PEAK,
    "min_lr": LOW,
    "warmup_steps": WARMUP,
    "decay_steps": DECAY,
    "total_steps": TOTAL,
    "d_model": D_MODEL,
    "lr_scale": 2.0,
}
EDGES = [0, 1, WARMUP - 1, WARMUP, WARMUP + 1, 50, TOTAL - DECAY, 90, TOTAL - 1, TOTAL, 3 * TOTAL]


def ramp_then(n, fall):
    if n >= TOTAL:
        return LOW
    return PEAK * n / WARMUP if n < WARMUP else fall(n)


CLOSED_FORMS = {
    "warmup_cosine": lambda n: ramp_then(
        n,
        lambda n: LOW + (PEAK - LOW) * math.cos((n - WARMUP) / (TOTAL - WARMUP) * math.pi / 2) ** 2,
    ),
    "linear": lambda n: ramp_then(n, lambda n: np.interp(n, [WARMUP, TOTAL], [PEAK, LOW])),
    "warmup_stable_decay": lambda n: ramp_then(
        n, lambda n: np.interp(n, [TOTAL - DECAY, TOTAL], [PEAK, LOW])
    ),
    "warmup_inverse_sqrt": lambda n: (
        PEAK * (n + 1) / WARMUP if n + 1 < WARMUP else PEAK * math.sqrt(WARMUP / (n + 1))
    ),
    "warmup_inverse_sqrt_original": lambda n: (
        2.0 / math.sqrt(D_MODEL) * min(1 / math.sqrt(n + 1), (n + 1) / math.sqrt(WARMUP) ** 3)
    ),
    "constant": lambda n: PEAK,
}


def test_every_schedule_has_a_closed_form_here():
    assert set(CLOSED_FORMS) == set(schedules.SCHEDULES)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_form_compiled_with_everything_traced(name):
    compiled = jax.jit(lambda n, hypers: schedules.learning_rate(name, n, hypers))
    rates = compiled(jnp.array(EDGES), {k: jnp.float32(v) for k, v in HYPERS.items()})
    assert rates.dtype == jnp.float32
    expected = [CLOSED_FORMS[name](n) for n in EDGES]
    np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_plain_numbers_take_numpy_and_agree(name):
    rates = schedules.learning_rate(name, np.array(EDGES), HYPERS)
    assert type(rates) is np.ndarray and rates.dtype == np.float32
    expected = [CLOSED_FORMS[name](n) for n in EDGES]
    np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["warmup_cosine", "linear", "warmup_stable_decay"])
def test_the_boundaries_are_met_exactly(name):
    rates = schedules.learning_rate(name, np.array([0, WARMUP, TOTAL, TOTAL + 1]), HYPERS)
    np.testing.assert_array_equal(rates, np.float32([0, PEAK, LOW, LOW]))


def test_cosine_is_that_of_optax():
    ours = schedules.warmup_cosine(
        np.arange(120), peak_lr=PEAK, warmup_steps=WARMUP, total_steps=TOTAL, min_lr=LOW
    )
    theirs = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, TOTAL, LOW)
    np.testing.assert_allclose(ours, theirs(jnp.arange(120)), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_no_jump_is_larger_than_the_steepest_slope(name):
    rates = schedules.learning_rate(name, np.arange(TOTAL + 10), HYPERS)
    peak = rates.max()
    steepest = peak * max(1 / WARMUP, 1 / DECAY, math.pi / 2 / (TOTAL - WARMUP))
    assert np.abs(np.diff(rates)).max() <= steepest * (1 + 1e-5)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_no_warmup_and_no_decay_give_no_nan(name):
    hypers = HYPERS | {"warmup_steps": 0, "decay_steps": 0}
    rates = schedules.learning_rate(name, np.arange(TOTAL + 1), hypers)
    assert np.isfinite(rates).all()
    assert rates[0] == rates.max() > 0  # the peak at once
    degenerate = hypers | {"total_steps": 0}
    assert np.isfinite(schedules.learning_rate(name, np.arange(3), degenerate)).all()


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_population_of_hypers_is_each_one_alone(name):
    lanes = [
        HYPERS,
        HYPERS | {"peak_lr": 1.0, "warmup_steps": 0, "d_model": 512},
        HYPERS | {"total_steps": 60, "decay_steps": 5, "min_lr": 0.0, "lr_scale": 0.5},
    ]
    stacked = {key: jnp.array([float(lane[key]) for lane in lanes]) for key in HYPERS}
    together = jax.jit(
        jax.vmap(lambda n, h: schedules.learning_rate(name, n, h), in_axes=(None, 0))
    )(jnp.array(EDGES), stacked)
    alone = [schedules.learning_rate(name, np.array(EDGES), lane) for lane in lanes]
    for ours, lane in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, lane, rtol=2e-6, atol=3e-7 * lane.max())  # rounding


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 13, 100, 5000])
def test_table_has_the_turns_the_ends_and_the_rates(name, num_steps):
    cfg = OptimConfig(
        schedule=name, warmup_steps=min(10, num_steps // 2), decay_steps=num_steps // 4
    )
    hypers = hyper_values(cfg, num_steps=num_steps, d_model=D_MODEL)
    table = schedules.schedule_table(name, hypers, num_steps)
    steps = [n for n, _ in table]
    assert len(table) == min(12, num_steps) and steps == sorted(set(steps))
    turns = {0, min(1, num_steps - 1), num_steps - 1}
    if name != "constant":
        turns.add(min(cfg.warmup_steps, num_steps - 1))
    if name == "warmup_stable_decay":
        turns.add(min(num_steps - cfg.decay_steps, num_steps - 1))
    assert turns <= set(steps)
    for n, rate in table:
        assert type(n) is int and type(rate) is float
        assert rate == float(schedules.learning_rate(name, n, hypers))
