"""Recurrent cells against a numpy reading of their equations, and against torch's layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn import recurrent

B, S, IN, D = 3, 7, 5, 4
CELLS = {"rnn": recurrent.rnn, "gru": recurrent.gru, "lstm": recurrent.lstm}


def draw(kind, seed=0):
    """A layer's list as Keras has it: kernel [in, G*D], recurrent kernel [D, G*D], bias."""
    rng, G = np.random.default_rng(seed), recurrent.GATES[kind]
    kernel, inner = rng.normal(size=(IN, G * D)), rng.normal(size=(D, G * D))
    bias = rng.normal(size=(2, G * D) if kind == "gru" else G * D)
    return kernel, inner, bias


def scan(cell, x, weights, states=1, **options):
    """The outputs [B, S, D] and the state, from zeros."""
    w = {name: jnp.float32(a) for name, a in weights.items()}

    @quick_jit
    def run(x):
        gates = jnp.tensordot(x, w["kernel"], 1) + w["bias"]
        zero = (jnp.zeros((len(x), D)),) * states
        return recurrent.scan_cell(cell, gates, zero, w, **options)

    return run(jnp.float32(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras_gru(x, kernel, inner, bias, reset_after=True):
    """float64, gate by gate, as the documentation of keras.layers.GRU writes them: z, r, h."""
    h, out = np.zeros((len(x), D)), []
    (kz, kr, kh), (uz, ur, uh) = np.split(kernel, 3, axis=1), np.split(inner, 3, axis=1)
    (bz, br, bh), (cz, cr, ch) = np.split(bias[0], 3), np.split(bias[1], 3)
    for t in range(x.shape[1]):
        z = sigmoid(x[:, t] @ kz + bz + h @ uz + cz)
        r = sigmoid(x[:, t] @ kr + br + h @ ur + cr)
        if reset_after:
            new = np.tanh(x[:, t] @ kh + bh + r * (h @ uh + ch))
        else:
            new = np.tanh(x[:, t] @ kh + bh + (r * h) @ uh)
        h = z * h + (1 - z) * new
        out.append(h)
    return np.stack(out, axis=1)


def test_gru_is_that_of_keras():
    x, weights = np.random.default_rng(1).normal(size=(B, S, IN)), draw("gru")
    out, (state,) = scan(recurrent.gru, x, recurrent.weights_from_keras(*weights))
    np.testing.assert_allclose(out, keras_gru(x, *weights), atol=1e-6)
    np.testing.assert_array_equal(state, out[:, -1])


def test_gru_that_resets_before_the_product():
    x, (kernel, inner, bias) = np.random.default_rng(1).normal(size=(B, S, IN)), draw("gru")
    bias[1] = 0  # it has one bias
    weights = recurrent.weights_from_keras(kernel, inner, bias[0])
    assert "recurrent_bias" not in weights
    out, _ = scan(recurrent.gru_reset_before, x, weights)
    np.testing.assert_allclose(out, keras_gru(x, kernel, inner, bias, False), atol=1e-6)


# Which of our gates stands at each of torch's places: r, z, n; i, f, g, o.
TORCH_ORDER = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 1, 2, 3]}


@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    layer = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind]
    layer = layer(IN, D, batch_first=True).double()
    weights = recurrent.weights_from_keras(*draw(kind))
    order = TORCH_ORDER[kind]

    def rows(w):  # [in, G, D] -> [G*D, in]
        return torch.tensor(np.concatenate([w[:, g].T for g in order]))

    zero = np.zeros_like(weights["bias"])
    with torch.no_grad():
        layer.weight_ih_l0.copy_(rows(weights["kernel"]))
        layer.weight_hh_l0.copy_(rows(weights["recurrent"]))
        layer.bias_ih_l0.copy_(torch.tensor(weights["bias"][order].ravel()))
        inner = weights.get("recurrent_bias", zero)
        layer.bias_hh_l0.copy_(torch.tensor(inner[order].ravel()))
        x = np.random.default_rng(1).normal(size=(B, S, IN))
        want, state = layer(torch.tensor(x))
    out, ours = scan(CELLS[kind], x, weights, recurrent.NUM_STATES[kind])
    np.testing.assert_allclose(out, want.numpy(), atol=1e-6)
    theirs = state if kind == "lstm" else (state,)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b[0].numpy(), atol=1e-6)


def test_a_start_forgets_and_a_step_not_taken_leaves_the_state():
    x, weights = np.random.default_rng(2).normal(size=(B, S, IN)), draw("lstm")
    weights = recurrent.weights_from_keras(*weights)
    starts = np.zeros((B, S), bool)
    starts[:, 3] = True
    out, _ = scan(recurrent.lstm, x, weights, 2, starts=starts)
    fresh, _ = scan(recurrent.lstm, x[:, 3:], weights, 2)
    np.testing.assert_allclose(out[:, 3:], fresh, atol=1e-6)

    taken = np.arange(S) < np.array([S, 4, 0])[:, None]
    _, state = scan(recurrent.lstm, x, weights, 2, taken=taken)
    _, four = scan(recurrent.lstm, x[:, :4], weights, 2)
    for whole, part in zip(state, four, strict=True):
        np.testing.assert_allclose(whole[1], part[1], atol=1e-6)
        np.testing.assert_array_equal(whole[2], 0)
