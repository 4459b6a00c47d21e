"""The product with a bfloat16 weight against numpy in float64 of the same rounded numbers."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.kernels.narrow_linear import linear, narrow

SHAPES = [
    ((1, 1, 6), (6, 4), 1),
    ((1, 6), (6, 3, 2), 1),
    ((2, 5, 6), (6, 3, 2), 1),
    ((1, 1, 3, 2), (3, 2, 6), 2),
    ((2, 5, 3, 2), (3, 2, 6), 2),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "num_in"), SHAPES)
def test_products_of_rounded_numbers_are_summed_in_float32(x_shape, w_shape, num_in):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape))
    rounded = [each.astype(ml_dtypes.bfloat16).astype(np.float64) for each in (x, w)]
    y = quick_jit(lambda x, w: linear(x, narrow(w, num_in), num_in))(x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, np.tensordot(*rounded, num_in), atol=1e-5)
    assert np.abs(y - np.tensordot(x, w, num_in)).max() > 1e-4  # and it was in fact rounded


def test_the_result_has_the_dtype_of_what_came_in():
    x, w = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2))
    assert linear(x, narrow(w)).dtype == jnp.bfloat16
