import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxlm.nn.feedforward import ACTIVATIONS, GATES, feedforward, gated_feedforward

RNG = np.random.default_rng(0)
X = np.concatenate([np.linspace(-6, 6, 101), [0.0, -50.0, 50.0]])

ORACLES = {
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}  # the activation of the gate


def test_every_activation_has_an_oracle():
    assert set(ACTIVATIONS) == set(ORACLES) and set(GATES) == set(GATED)


@pytest.mark.parametrize("name", ORACLES)
def test_an_activation_is_its_equation(name):
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.float32(X)), ORACLES[name](X), rtol=2e-6, atol=1e-6
    )


def test_gelu_is_close_to_x_times_the_normal_distribution():
    # Hendrycks and Gimpel give the tanh form as an approximation; its error is below 5e-4
    exact = X * special.ndtr(X)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.float32(X)), exact, atol=5e-4)


@pytest.mark.parametrize("name", ORACLES)
def test_activations_and_their_gradients_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    theirs = {
        "relu": torch.relu,
        "relu_squared": lambda x: torch.relu(x) ** 2,
        "silu": torch.nn.functional.silu,
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }[name]
    x = torch.tensor(X, requires_grad=True)
    theirs(x).sum().backward()
    grad = jax.grad(lambda x: ACTIVATIONS[name](x).sum())(jnp.float32(X))
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_feedforward_is_down_of_activation_of_up(lead, biased):
    x, up, down = RNG.normal(size=(*lead, 4)), RNG.normal(size=(4, 6)), RNG.normal(size=(6, 4))
    b_up, b_down = RNG.normal(size=6) * biased, RNG.normal(size=4) * biased
    expected = np.maximum(x @ up + b_up, 0) @ down + b_down
    biases = {"b_up": jnp.float32(b_up), "b_down": jnp.float32(b_down)} if biased else {}
    weights = (jnp.float32(w) for w in (x, up, down))
    y = feedforward(*weights, activation=ACTIVATIONS["relu"], **biases)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (2, 3)])
@pytest.mark.parametrize(("name", "of_gate"), [*GATED.items()])
def test_a_gated_unit_is_down_of_gate_times_up(name, of_gate, lead):
    x, gate, up = RNG.normal(size=(*lead, 4)), RNG.normal(size=(4, 6)), RNG.normal(size=(4, 6))
    down = RNG.normal(size=(6, 4))
    expected = (ORACLES[of_gate](x @ gate) * (x @ up)) @ down
    y = gated_feedforward(*(jnp.float32(w) for w in (x, gate, up, down)), gate=GATES[name])
    np.testing.assert_allclose(y, expected, atol=1e-5)
