"""Cross-entropy against scipy in float64 and torch, and the loss as sums and weights."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from given_logits import model_of
from scipy import special

from jaxlm.nn.cross_entropy import cross_entropy, token_metrics
from jaxlm.objectives.next_token import make_loss_fn

V = 13
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 5, V))
WEIGHTS = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 1, 0.5]], np.float32)
TOKEN_BYTES = np.arange(V, dtype=np.int32) % 4
FIXED = model_of(lambda params, tokens, **options: params)
LOSS_FN = make_loss_fn(FIXED, token_bytes=TOKEN_BYTES)


def nll_oracle(logits, targets):
    log_z = special.logsumexp(logits, axis=-1)
    return log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0], log_z


@quick_jit
def grad_of_loss(logits, hypers, batch):
    value = jax.value_and_grad(LOSS_FN, has_aux=True)
    return value(logits, None, {"kept": 7}, hypers, batch, jax.random.key(0))


def run(hypers, batch, logits=LOGITS):
    hypers = {name: jnp.float32(value) for name, value in hypers.items()}
    return grad_of_loss(jnp.float32(logits), hypers, batch)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("shift", [0.0, -1e4])
def test_cross_entropy_is_the_log_sum_exp_form_and_survives_large_logits(scale, shift, make_batch):
    targets = make_batch(0, WEIGHTS).targets
    logits = np.float32(scale * LOGITS + shift)
    exact, exact_log_z = nll_oracle(logits.astype(np.float64), targets)
    nll, log_z = quick_jit(cross_entropy)(logits, targets)
    # float32 holds the logits to one part in 10^7; their difference keeps that absolute error
    np.testing.assert_allclose(nll, exact, atol=2e-7 * np.abs(logits).max() + 1e-6)
    np.testing.assert_allclose(log_z, exact_log_z, rtol=1e-6)
    grad = quick_jit(jax.grad(lambda x: cross_entropy(x, targets)[0].sum()))(logits)
    shares = special.softmax(logits.astype(np.float64), axis=-1) - np.eye(V)[targets]
    np.testing.assert_allclose(grad, shares, atol=3e-3 if shift else 1e-5)


def test_no_gradient_is_scattered_into_an_array_of_the_logits_size():
    logits, targets = jnp.zeros((4, 9)), jnp.zeros(4, jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: cross_entropy(x, targets)[0].sum()))(logits)
    assert "exp" in str(jaxpr) and "scatter" not in str(jaxpr)


def test_bfloat16_logits_are_taken_to_float32(make_batch):
    targets = make_batch(0, WEIGHTS).targets
    half = jnp.asarray(LOGITS, jnp.bfloat16)
    nll, _ = cross_entropy(half, targets)
    assert nll.dtype == jnp.float32
    exact, _ = nll_oracle(np.asarray(half, np.float64), targets)
    np.testing.assert_allclose(nll, exact, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_loss_and_gradient_with_label_smoothing_are_those_of_torch(share, make_batch):
    torch = pytest.importorskip("torch")
    batch = make_batch(0, WEIGHTS)
    x = torch.tensor(LOGITS.reshape(-1, V), requires_grad=True)
    targets = torch.tensor(batch.targets.reshape(-1), dtype=torch.long)
    each = torch.nn.functional.cross_entropy(x, targets, reduction="none", label_smoothing=share)
    total = (each * torch.tensor(WEIGHTS.reshape(-1))).sum()
    total.backward()
    (loss, _), grad = run({"label_smoothing": share}, batch)
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    np.testing.assert_allclose(grad.reshape(-1, V), x.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1e-2, 1.0])
def test_z_loss_adds_the_weighted_square_of_the_log_normaliser(factor, make_batch):
    batch = make_batch(0, WEIGHTS)
    nll, log_z = nll_oracle(LOGITS, batch.targets)
    expected = ((nll + factor * log_z**2) * WEIGHTS).sum()
    (loss, (metrics, _)), grad = run({"z_loss": factor}, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    shares = special.softmax(LOGITS, axis=-1)
    slope = (1 + 2 * factor * log_z)[..., None] * shares - np.eye(V)[batch.targets]
    np.testing.assert_allclose(grad, slope * WEIGHTS[..., None], atol=2e-6)
    np.testing.assert_allclose(
        metrics["loss"].compute(), (nll * WEIGHTS).sum() / WEIGHTS.sum(), rtol=1e-5
    )


def test_the_reported_loss_is_the_plain_mean_over_what_counts(make_batch):
    batch = make_batch(0, WEIGHTS)
    nll, _ = nll_oracle(LOGITS, batch.targets)
    (_, (metrics, carry)), _ = run({"label_smoothing": 0.3, "z_loss": 0.1}, batch)
    np.testing.assert_allclose(
        metrics["loss"].compute(), np.average(nll, weights=WEIGHTS), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["loss"].weight, WEIGHTS.sum())
    assert carry == {"kept": 7}


def test_tokens_of_weight_zero_change_nothing(make_batch):
    batch = make_batch(0, WEIGHTS)
    off = WEIGHTS == 0
    other = dataclasses.replace(
        batch, targets=np.where(off, (batch.targets + 1) % V, batch.targets)
    )
    (loss, (metrics, _)), grad = run({}, batch)
    changed = run({}, other, np.where(off[..., None], 50.0, LOGITS))
    np.testing.assert_array_equal(changed[0][0], loss)
    jax.tree.map(np.testing.assert_array_equal, changed[0][1][0], metrics)
    np.testing.assert_array_equal(np.asarray(grad)[off], 0)


def test_bits_per_byte_divides_by_the_bytes_of_what_counts(make_batch):
    batch = make_batch(0, WEIGHTS)
    nll, _ = nll_oracle(LOGITS, batch.targets)
    bits = (nll * WEIGHTS).sum() / np.log(2)
    expected = bits / (TOKEN_BYTES[batch.targets] * WEIGHTS).sum()
    metrics = token_metrics(jnp.float32(nll), batch, TOKEN_BYTES)
    np.testing.assert_allclose(metrics["bits_per_byte"].compute(), expected, rtol=1e-6)


def test_uniform_logits_over_256_bytes_cost_eight_bits_a_byte():
    batch = types.SimpleNamespace(
        targets=np.arange(256)[None], weights=np.ones((1, 256), np.float32)
    )
    nll, _ = cross_entropy(jnp.zeros((1, 256, 256)), batch.targets)
    metrics = token_metrics(nll, batch, np.ones(256))
    np.testing.assert_allclose(metrics["bits_per_byte"].compute(), 8.0, rtol=1e-6)


@pytest.mark.parametrize(("hypers", "has_key"), [({}, False), ({"dropout": 0.2}, True)])
def test_the_key_reaches_the_model_only_where_there_is_a_dropout_rate(hypers, has_key, make_batch):
    seen = {}

    def forward(params, tokens, **options):
        seen.update(options)
        return jnp.float32(LOGITS)

    loss_fn = make_loss_fn(model_of(forward), token_bytes=TOKEN_BYTES)
    loss_fn({}, None, {}, hypers, make_batch(0, WEIGHTS), jax.random.key(0))
    assert (seen["key"] is not None) == has_key
    assert seen["dropout"] == hypers.get("dropout")
