import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn import norms

layer_norm, rms_norm = quick_jit(norms.layer_norm), quick_jit(norms.rms_norm)

RNG = np.random.default_rng(0)
SHAPES = [(4,), (2, 3, 65)]


def rms_oracle(x, gain, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).sum(-1, keepdims=True) / x.shape[-1] + eps) * gain


def layer_oracle(x, gain, bias, eps):
    x = x.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gain + bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_rms_norm_is_its_equation(shape, eps):
    x, gain = 3 * RNG.normal(size=shape), RNG.normal(size=shape[-1])
    y = rms_norm(jnp.float32(x), jnp.float32(gain), eps)
    np.testing.assert_allclose(y, rms_oracle(x, gain, eps), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_layer_norm_is_its_equation(shape, eps):
    x, gain, bias = 3 + RNG.normal(size=shape), RNG.normal(size=shape[-1]), RNG.normal()
    y = layer_norm(jnp.float32(x), jnp.float32(gain), jnp.full(shape[-1], bias), eps)
    np.testing.assert_allclose(y, layer_oracle(x, gain, bias, eps), rtol=2e-5, atol=2e-6)


def test_layer_norm_without_a_bias_adds_none():
    x, gain = jnp.float32(RNG.normal(size=(3, 8))), jnp.float32(RNG.normal(size=8))
    np.testing.assert_array_equal(layer_norm(x, gain), layer_norm(x, gain, jnp.zeros(8)))


def test_eps_is_inside_the_root():
    y = rms_norm(jnp.full(4, 1e-4), jnp.ones(4), eps=1e-8)
    np.testing.assert_allclose(y, np.full(4, 1e-4 / np.sqrt(2e-8)), rtol=1e-5)


@pytest.mark.parametrize("norm", [norms.rms_norm, norms.layer_norm])
def test_zeros_give_zeros_and_a_finite_gradient(norm):
    value, grad = quick_jit(jax.value_and_grad(lambda x: norm(x, jnp.ones(4)).sum()))(jnp.zeros(4))
    assert value == 0
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_statistics_of_bfloat16_are_taken_in_float32(norm):
    # 256 + 1 is 256 in bfloat16: a sum of 1,000 ones taken there would stop at 256
    x = jnp.float32(RNG.normal(size=1000)).astype(jnp.bfloat16)
    y = norm(x, jnp.ones(1000))
    assert y.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32), jnp.ones(1000)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, exact)


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_the_gain_is_multiplied_in_float32(norm):
    gain = jnp.full(4, 1.003)  # 1 in bfloat16
    x = jnp.array([100.0, -100.0, 100.0, -100.0], jnp.bfloat16)
    wide = norm(x.astype(jnp.float32), gain)
    np.testing.assert_array_equal(norm(x, gain), wide.astype(jnp.bfloat16))
    assert wide[0] > 1.002
