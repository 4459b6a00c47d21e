import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn import positions as nn_positions

sinusoidal = quick_jit(nn_positions.sinusoidal, static_argnums=(1, 2))
segment_positions = quick_jit(nn_positions.segment_positions)


@pytest.mark.parametrize("d_model", [2, 6])
def test_sinusoidal_is_its_equation(d_model):
    positions = np.arange(20)
    expected = np.zeros((20, d_model))
    for pos in positions:
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            expected[pos, 2 * i], expected[pos, 2 * i + 1] = np.sin(angle), np.cos(angle)
    table = sinusoidal(jnp.asarray(positions), d_model)
    np.testing.assert_allclose(table, expected, atol=5e-6)
    half = sinusoidal(jnp.asarray(positions), d_model, "half")
    np.testing.assert_allclose(half[:, : d_model // 2], expected[:, 0::2], atol=5e-6)
    np.testing.assert_allclose(half[:, d_model // 2 :], expected[:, 1::2], atol=5e-6)


def test_sinusoidal_takes_positions_of_any_shape():
    positions = jnp.array([[0, 3, 1], [2, 2, 9]])
    table = sinusoidal(jnp.arange(10), 6)
    np.testing.assert_array_equal(sinusoidal(positions, 6), table[positions])


@pytest.mark.parametrize(
    ("segments", "positions"),
    [
        ([7], [0]),
        ([1, 1, 1], [0, 1, 2]),
        ([1, 2, 3], [0, 0, 0]),
        ([1, 1, 2, 2, 2, 0, 0], [0, 1, 0, 1, 2, 0, 1]),
        ([0, 0, 1, 0, 0], [0, 1, 0, 0, 1]),
        ([[1, 1, 2], [1, 2, 2]], [[0, 1, 0], [0, 0, 1]]),
    ],
)
def test_positions_restart_where_the_segment_changes(segments, positions):
    got = segment_positions(jnp.array(segments))
    np.testing.assert_array_equal(got, positions)
    assert jnp.issubdtype(got.dtype, jnp.integer)
