"""The product of narrow operands with a float32 result, backwards in narrow products too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.linear import float32_product


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_value_and_gradients_are_those_of_the_product(dtype, tolerance):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=size) for size in ((2, 3, 8), (8, 5), (2, 3, 5)))
    narrow = [jnp.asarray(a, dtype) for a in (x, w)]
    y, pull = jax.vjp(float32_product, *narrow)
    assert y.dtype == jnp.float32
    exact = [np.float64(a) for a in narrow]
    np.testing.assert_allclose(y, exact[0] @ exact[1], atol=1e-5)  # nothing is rounded but x and w
    dx, dw = pull(jnp.float32(dy))
    assert (dx.dtype, dw.dtype) == (narrow[0].dtype, narrow[1].dtype)
    expected = (dy @ exact[1].T, np.einsum("bsd,bsv->dv", exact[0], dy))
    for mine, want in zip((dx, dw), expected, strict=True):
        np.testing.assert_allclose(np.float64(mine), want, atol=tolerance * np.abs(want).max())


def test_no_product_of_narrow_operands_is_widened():
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 5), jnp.bfloat16)

    def all_three(x, w):
        y, pull = jax.vjp(float32_product, x, w)
        return pull(y)

    eqns = _inner(jax.make_jaxpr(all_three)(x, w).eqns)
    dots = [eqn for eqn in eqns if eqn.primitive.name == "dot_general"]
    assert len(dots) == 3
    assert all(v.aval.dtype == jnp.bfloat16 for e in dots for v in e.invars)


def _inner(eqns):
    for eqn in eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from _inner(getattr(value, "jaxpr", value).eqns)
