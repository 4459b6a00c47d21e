"""The CPU's product with a weight against numpy in float64, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.kernels import row_linear
from jaxlm.nn import linear as plain

SHAPES = [((2, 5, 6), (6, 4), 1), ((2, 5, 6), (6, 3, 2), 1), ((2, 5, 3, 2), (3, 2, 6), 2)]


@pytest.mark.parametrize(("x_shape", "w_shape", "num_in"), SHAPES)
@pytest.mark.parametrize("linear", [row_linear.linear, plain.linear], ids=["row", "plain"])
def test_values_and_gradients_are_those_of_float64(linear, x_shape, w_shape, num_in):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    exact = np.tensordot(x, w, num_in)
    dy = rng.normal(size=exact.shape)

    @quick_jit
    def run(x, w, dy):
        y, pull = jax.vjp(lambda x, w: linear(x, w, num_in), x, w)
        return y, *pull(dy)

    y, dx, dw = run(*map(jnp.float32, (x, w, dy)))
    tokens = tuple(range(x.ndim - num_in))
    outputs = tuple(range(num_in, w.ndim))
    np.testing.assert_allclose(y, exact, atol=1e-5)
    np.testing.assert_allclose(
        dx, np.tensordot(dy, w, (tuple(range(len(tokens), dy.ndim)), outputs)), atol=1e-5
    )
    np.testing.assert_allclose(dw, np.tensordot(x, dy, (tokens, tokens)), atol=1e-5)


def test_gradients_keep_the_dtypes_of_their_arrays():
    x, w = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2), jnp.bfloat16)
    dx, dw = jax.grad(lambda x, w: row_linear.linear(x, w).sum().astype(jnp.float32), (0, 1))(x, w)
    assert dx.dtype == dw.dtype == jnp.bfloat16
