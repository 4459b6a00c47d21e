"""Recurrent cells, and the scan that runs one over a row: arrays in, arrays out.

Beside the letters of `jaxlm.core.arrays`: G is the number of gates of a cell. A cell's state is a
tuple of f32[B, D], its output the first of them. Its weights:

  kernel: [in, G, D] and bias [G, D], of the input; their part is made for all steps at once.
  recurrent: [D, G, D], of the state. recurrent_bias: [G, D], of the GRU that resets after.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params

State = tuple[Array, ...]
GATES = {"rnn": 1, "gru": 3, "lstm": 4}  # h; z, r, h; i, f, c, o: the order of Keras
NUM_STATES = {"rnn": 1, "gru": 1, "lstm": 2}


def rnn(x: Array, state: State, w: Params) -> State:
    """h' = tanh(x + h U), x [B, 1, D]: the input's part. Source: Elman 1990."""
    (h,) = state
    return (jnp.tanh(x[:, 0] + h @ w["recurrent"][:, 0]),)


def gru(x: Array, state: State, w: Params) -> State:
    """The GRU that resets after the product, as cuDNN and Keras have it; x [B, 3, D] for z, r, h.

    h~ = tanh(x_h + r * (h U_h + b_h)) and h' = z * h + (1 - z) * h~.
    Source: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", with the
      reset gate where cuDNN puts it (Keras: GRU with reset_after=True).
    """
    (h,) = state
    inner = jnp.tensordot(h, w["recurrent"], 1) + w["recurrent_bias"]
    z, r = (jax.nn.sigmoid(x[:, i] + inner[:, i]) for i in (0, 1))
    return (z * h + (1 - z) * jnp.tanh(x[:, 2] + r * inner[:, 2]),)


def gru_reset_before(x: Array, state: State, w: Params) -> State:
    """The GRU as first published: h~ = tanh(x_h + (r * h) U_h); else as `gru`, without b_h."""
    (h,) = state
    inner = jnp.tensordot(h, w["recurrent"][:, :2], 1)
    z, r = (jax.nn.sigmoid(x[:, i] + inner[:, i]) for i in (0, 1))
    return (z * h + (1 - z) * jnp.tanh(x[:, 2] + (r * h) @ w["recurrent"][:, 2]),)


def lstm(x: Array, state: State, w: Params) -> State:
    """c' = f * c + i * tanh(.), h' = o * tanh(c'); x [B, 4, D] for i, f, c, o; state (h, c).

    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    h, c = state
    gates = x + jnp.tensordot(h, w["recurrent"], 1)
    i, f, o = (jax.nn.sigmoid(gates[:, n]) for n in (0, 1, 3))
    c = f * c + i * jnp.tanh(gates[:, 2])
    return o * jnp.tanh(c), c


def scan_cell(
    cell: Callable[[Array, State, Params], State],
    x: Array,
    state: State,
    w: Params,
    *,
    starts: Array | None = None,
    taken: Array | None = None,
) -> tuple[Array, State]:
    """Runs a cell over rows.

    Args:
      x: f32[B, S, G, D], the input's part of the gates. state: before the first step.
      starts: bool[B, S], steps before which the state becomes zero. taken: bool[B, S], the steps
        that count: at the others the state stays. None: no step, every step.
    Returns:
      f32[B, S, D], the output after each step, and the state after the last.
    """

    def step(state, each):
        x, start, take = each
        if start is not None:
            state = jax.tree.map(lambda s: jnp.where(start[:, None], 0, s), state)
        new = cell(x, state, w)
        if take is not None:
            new = jax.tree.map(lambda n, s: jnp.where(take[:, None], n, s), new, state)
        return new, new[0]

    by_step = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (x, starts, taken))
    state, out = jax.lax.scan(step, state, by_step)
    return jnp.swapaxes(out, 0, 1), state


def weights_from_keras(
    kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> dict[str, np.ndarray]:
    """The weights of a cell from a layer's list in Keras: `layer.get_weights()`.

    Args:
      kernel: [in, G*D]. recurrent: [D, G*D]. bias: [G*D], or [2, G*D] of a GRU with
        reset_after=True: of the input and of the state.
    """
    D = len(recurrent)
    found = {
        "kernel": np.reshape(kernel, (len(kernel), -1, D)),
        "recurrent": np.reshape(recurrent, (D, -1, D)),
        "bias": np.reshape(np.atleast_2d(bias)[0], (-1, D)),
    }
    if np.ndim(bias) == 2:
        found["recurrent_bias"] = np.reshape(bias[1], (-1, D))
    return found
