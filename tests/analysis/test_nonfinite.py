"""The equation that is named is the one a planted value comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis.nonfinite import first_nonfinite

W = np.ones((3, 2, 2), np.float32)
X = np.ones((2, 2), np.float32)


def layers(params, x):
    """Three layers of x @ w, the infinities of a mask, and a softmax that takes them away."""

    def layer(x, w):
        scores = jnp.where(jnp.eye(2, dtype=bool), x @ w, -jnp.inf)
        return x + jax.nn.softmax(scores) * 1e-3, None

    x, _ = jax.lax.scan(layer, x, params["blocks"]["w"])
    return jnp.sum(x)


def origin(w=W, x=X, fn=layers):
    return first_nonfinite(fn, {"params": {"blocks": {"w": w}}, "batch": x})


def test_infinities_that_are_meant_are_not_named():
    assert origin() is None
    assert origin(fn=jax.grad(layers)) is None


def test_the_layer_and_the_weight_are_named():
    w = W.copy()
    w[1] = 3e38
    found = origin(w)
    assert found.what == "dot_general gives inf, float32[2,2]"
    assert found.reads == ("params/blocks/w[1]",)
    assert found.where.startswith("layer 1, ") and "test_nonfinite.py:" in found.where
    assert found.where.endswith("(layer)")


def test_an_input_is_named_by_its_path():
    w = W.copy()
    w[2, 0, 1] = np.nan
    assert str(origin(w)) == "params/blocks/w has nan before the step"
    assert str(origin(x=X * np.inf)) == "batch has inf before the step"


def test_what_goes_wrong_on_the_way_back_only():
    """The root of 0 is 0, its slope is infinite; loops run backwards keep their numbers."""

    def loss(params, x):
        def layer(x, each):
            i, w = each
            return x @ w + jnp.sqrt(jnp.where(i == 1, x * 0, x * x)), None

        x, _ = jax.lax.scan(layer, x, (jnp.arange(3), params["blocks"]["w"]))
        return jnp.sum(x)

    assert origin(fn=loss) is None
    found = origin(fn=jax.grad(jax.checkpoint(loss)))
    assert "backward" in found.where and "layer 1" in found.where, found


def test_the_first_of_those_that_led_to_the_output():
    def fn(params, x):
        apart = jnp.log(x * 0)  # not in the output
        return jnp.sum(jnp.exp(x * 1000) - 1), apart

    found = first_nonfinite(fn, {"params": {}, "x": X}, lambda out: out[0])
    assert found.what.startswith("exp gives inf")
    assert first_nonfinite(fn, {"params": {}, "x": X}, lambda out: out[1]).what.startswith("log")


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_functions_inside_are_entered(wrap):
    def inner(x):
        return jnp.log(x - 1) * 0

    found = first_nonfinite(lambda x: wrap(inner)(x) + 1, {"x": X})
    assert found.what.startswith("log gives inf") and "(inner)" in found.where


def test_the_numbers_are_those_of_the_function():
    """A custom gradient, a branch, a while loop and a random draw run as they are."""

    def fn(x, key):
        y = jax.nn.relu(x) + jax.random.normal(key, x.shape)
        y = jax.lax.cond(y[0, 0] > 9, lambda y: y, lambda y: y * 2, y)
        y = jax.lax.while_loop(lambda y: y[0, 0] < 100, lambda y: y * 1.5, jnp.abs(y))
        return jnp.where(jnp.all(y == fn.want), 0.0, jnp.nan) if fn.want is not None else y

    fn.want = None
    fn.want = np.asarray(fn(X, jax.random.key(0)))
    assert first_nonfinite(fn, {"x": X, "key": jax.random.key(0)}) is None
