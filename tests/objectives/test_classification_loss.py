"""Weighted cross-entropy and distillation against torch, in value and gradient."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from sklearn.utils.class_weight import compute_class_weight

from jaxlm.core.metrics import Mean
from jaxlm.data.examples import Examples
from jaxlm.objectives.classification import balanced_weights, make_loss_fn
from jaxlm.objectives.distillation import soft_divergence

RNG = np.random.default_rng(0)
LOGITS = np.float32(2 * RNG.normal(size=(12, 3)))
TEACHER = np.float32(3 * RNG.normal(size=(12, 3)))
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0, 1], np.int32)
WEIGHTS = np.array([0.3, 1.5, 4.0], np.float32)
MODEL = types.SimpleNamespace(forward=lambda params, inputs, **options: params[inputs])
ALL = np.arange(12)


def run(hypers, batch=None, class_weights=WEIGHTS, logits=LOGITS):
    """(mean loss as the step takes it, its gradient by the logits, metrics)"""
    batch = Examples(ALL, LABELS) if batch is None else batch
    loss = make_loss_fn(MODEL, class_weights=class_weights)
    hypers = {name: jnp.float32(value) for name, value in hypers.items()}
    value_and_grad = quick_jit(jax.value_and_grad(loss, has_aux=True))
    (total, (metrics, _)), grad = value_and_grad(logits, None, {}, hypers, batch, jax.random.key(0))
    weight = metrics["loss"].weight
    return total / weight, grad / weight, metrics


@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_the_mean_is_torchs_weighted_mean(weights):
    torch = pytest.importorskip("torch")
    x = torch.tensor(LOGITS, requires_grad=True)
    their_weights = None if weights is None else torch.tensor(weights)
    loss = torch.nn.CrossEntropyLoss(weight=their_weights)(x, torch.tensor(LABELS).long())
    loss.backward()
    ours, grad, metrics = run({}, class_weights=weights)
    np.testing.assert_allclose(ours, loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(grad, x.grad, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].compute(), loss.detach(), rtol=1e-5)
    right = (LOGITS.argmax(-1) == LABELS).mean()
    np.testing.assert_allclose(metrics["accuracy"].compute(), right, rtol=1e-6)


def test_parts_of_a_batch_merge_into_the_weighted_mean_of_the_whole():
    whole, _, _ = run({})
    parts = [run({}, Examples(ALL[at], LABELS[at]))[2]["loss"] for at in (ALL[:7], ALL[7:])]
    merged = Mean(parts[0].total + parts[1].total, parts[0].weight + parts[1].weight)
    np.testing.assert_allclose(merged.compute(), whole, rtol=1e-6)


@pytest.mark.parametrize(("power", "same_as"), [(0.0, None), (1.0, WEIGHTS), (0.5, WEIGHTS**0.5)])
def test_the_balance_is_a_power_of_the_weights(power, same_as):
    loss, grad, _ = run({"class_balance": power})
    expected, expected_grad, _ = run({}, class_weights=same_as)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_distillation_is_torchs_kl_times_the_square_of_the_temperature(temperature, share):
    torch = pytest.importorskip("torch")
    x = torch.tensor(LOGITS, requires_grad=True)
    functional = torch.nn.functional
    soft = functional.kl_div(
        functional.log_softmax(x / temperature, -1),
        functional.softmax(torch.tensor(TEACHER) / temperature, -1),
        reduction="batchmean",
    )
    hard = functional.cross_entropy(x, torch.tensor(LABELS).long())
    loss = share * temperature**2 * soft + (1 - share) * hard
    loss.backward()
    batch = Examples(ALL, LABELS, TEACHER)
    hypers = {"temperature": temperature, "soft_share": share}
    ours, grad, metrics = run(hypers, batch, None)
    np.testing.assert_allclose(ours, loss.detach(), rtol=1e-5)
    np.testing.assert_allclose(grad, x.grad, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].compute(), hard.detach(), rtol=1e-5)


def test_a_student_that_equals_its_teacher_has_no_loss_and_the_teacher_no_gradient():
    np.testing.assert_allclose(soft_divergence(LOGITS, LOGITS, 2.0), 0, atol=1e-6)
    grad = jax.grad(lambda t: soft_divergence(jnp.asarray(LOGITS), t, 2.0).sum())(TEACHER)
    np.testing.assert_array_equal(grad, 0)


def test_a_high_temperature_matches_centred_logits():
    """At large T the loss tends to half the mean square of centred differences times T^2 / T^2.

    Hinton et al. 2015, section 2.1, eq. 4, with the factor 1/C of a distribution.
    """

    def centred(x):
        return x.astype(np.float64) - x.mean(-1, keepdims=True)

    expected = 0.5 * np.square(centred(LOGITS) - centred(TEACHER)).mean(-1)
    run_at = quick_jit(soft_divergence)
    np.testing.assert_allclose(run_at(LOGITS, TEACHER, 100.0), expected, rtol=0.1, atol=0.01)


def test_balanced_weights_are_scikit_learns():
    counts = np.bincount(LABELS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(balanced_weights(counts), expected, rtol=1e-6)
    assert np.average(balanced_weights(counts), weights=counts) == pytest.approx(1)
    with pytest.raises(ValueError, match="class without an example"):
        balanced_weights(np.array([3, 0]))
