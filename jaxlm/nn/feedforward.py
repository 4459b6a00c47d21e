"""Feed-forward activations and gated units."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array
from jaxlm.nn.linear import add_bias
from jaxlm.nn.linear import linear as plain_linear


def relu_squared(x: Array) -> Array:
    """max(x, 0)^2. Source: So et al. 2021, "Primer", section 3."""
    return jnp.square(jax.nn.relu(x))


def gelu(x: Array) -> Array:
    """x * Phi(x) by the tanh form, as GPT-2. Source: Hendrycks and Gimpel 2016, section 2."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "relu_squared": relu_squared,
    "silu": jax.nn.silu,
}
# Of the gate. Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
GATES: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": gelu,
    "reglu": jax.nn.relu,
}


def feedforward(
    x: Array,
    w_up: Array,
    w_down: Array,
    *,
    activation: Callable[[Array], Array],
    b_up: Array | None = None,
    b_down: Array | None = None,
    linear: Callable[..., Array] = plain_linear,
) -> Array:
    """down(activation(up(x))): x [..., D], w_up [D, F], w_down [F, D] -> [..., D]."""
    h = activation(add_bias(linear(x, w_up), b_up))
    return add_bias(linear(h, w_down), b_down)


def gated_feedforward(
    x: Array,
    w_gate: Array,
    w_up: Array,
    w_down: Array,
    *,
    gate: Callable[[Array], Array],
    linear: Callable[..., Array] = plain_linear,
) -> Array:
    """down(gate(x w_gate) * up(x)): x [..., D], w_gate, w_up [D, F], w_down [F, D] -> [..., D]."""
    return linear(gate(linear(x, w_gate)) * linear(x, w_up), w_down)
