"""Recurrent language models: initial values by convention, and a state carried between batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.core.config import apply_overrides
from jaxlm.core.params import init_params
from jaxlm.data.batches import batch_at, split_from_array
from jaxlm.models import recurrent
from jaxlm.models.recurrent import RecurrentConfig
from jaxlm.models.scoring import score_targets
from jaxlm.objectives.next_token import make_loss_fn
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values, make_program

V, D, B, S = 11, 8, 2, 6


def initial(cfg):
    return quick_jit(lambda key: init_params(key, recurrent.param_specs(cfg)))(jax.random.key(0))


def test_initial_values_follow_the_conventions():
    cfg = RecurrentConfig(kind="lstm", vocab_size=V, d_model=D, num_layers=2)
    params = initial(cfg)["blocks"]
    forget = np.repeat([[0.0], [1.0], [0.0], [0.0]], D, axis=1)
    np.testing.assert_array_equal(params["bias"], [forget, forget])
    for layer in range(2):
        for gate in range(4):
            u = params["recurrent"][layer, :, gate]
            np.testing.assert_allclose(u.T @ u, np.eye(D), atol=1e-5)
    wide = RecurrentConfig(kind="gru", vocab_size=V, d_model=128)
    kernel = initial(wide)["blocks"]["kernel"]
    # sigma^2 = 2 / (128 + 128) before the cut, of every gate for itself
    np.testing.assert_allclose(np.std(kernel, axis=(0, 1, 3)), 128**-0.5, rtol=0.03)


def carried(**more):
    cfg = apply_overrides(
        RunConfig(),
        {
            "model.kind": "lstm",
            "model.vocab_size": V,
            "model.d_model": D,
            "model.num_layers": 2,
            "model.context_length": S,
            "model.carry_state": True,
            "data.order": "contiguous",
            "data.batch_size": B,
            "optim.warmup_steps": 0,
            **more,
        },
    )
    return cfg, make_program(cfg, np.ones(V, np.int32))


IDS = np.random.default_rng(0).integers(V, size=2 * 5 * S + 1)
DOCUMENTS = np.array([0, 9, 12, 40, 42])  # one begins where a row does: 2 * S, and 7 * S


def batches(num, documents):
    text = split_from_array(IDS, DOCUMENTS if documents else None)
    options = {"batch_size": B, "context_length": S, "order": "contiguous"}
    return [batch_at(text, 0, n, **options, mask_documents=documents) for n in range(num)]


@pytest.mark.parametrize("documents", [False, True])
def test_a_carried_state_is_that_of_the_row_read_as_one(documents):
    cfg, program = carried()
    state = quick_jit(lambda: program.init(0, hyper_values(cfg)))()
    loss_fn = make_loss_fn(program.model(state.hypers), token_bytes=np.ones(V, np.int32))
    run = quick_jit(functools.partial(loss_fn, hypers={}, frozen={}, key=None))
    carry, total, parts = state.carry, 0.0, batches(4, documents)
    for batch in parts:
        loss, (_, carry) = run(state.params, carry=carry, batch=batch)
        total += loss
    whole = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    if documents:  # ids are counted from each row's start: here from the beginning
        starts = np.array([0, 5 * S])[:, None] + np.arange(4 * S)
        whole = whole.replace(segment_ids=np.searchsorted(DOCUMENTS, starts, side="right"))
    score = quick_jit(functools.partial(score_targets, program.model(state.hypers)))
    nll = score(state.params, whole).nll
    np.testing.assert_allclose(total, np.sum(nll * whole.weights), rtol=1e-5)
    fresh = sum(run(state.params, carry=state.carry, batch=batch)[0] for batch in parts)
    assert abs(fresh - total) > 1e-3  # the state is not idle


def test_gradients_end_at_the_beginning_of_the_row_and_the_state_is_trained_on():
    cfg, program = carried()
    state = quick_jit(lambda: program.init(0, hyper_values(cfg)))()
    step = quick_jit(program.step)
    for batch in batches(3, False):
        before = state
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"].compute())
    # What a step leaves is the state after its row, read with the weights it began with.
    model = program.model(before.hypers)
    read = quick_jit(model.train_hidden)
    _, carry = read(before.params, batches(3, False)[2].tokens, before.carry)
    for a, b in zip(state.carry["state"], carry["state"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert jnp.abs(a).max() > 0
