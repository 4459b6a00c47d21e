"""What is asked of cuDNN, tried with the library's own implementation: cuDNN itself needs a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.kernels import cudnn_attention
from jaxlm.nn.attention import attend as plain

attend = functools.partial(cudnn_attention.attend, implementation="xla")
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [5, 5, 5, 5, 3, 3, 3]])
OTHERS = np.where(SEGMENTS == 2, 9, SEGMENTS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False},
        {"window": 3},
        {"window": 2, "causal": False},
        {"q_segments": SEGMENTS, "kv_segments": SEGMENTS},
        {"q_segments": SEGMENTS, "kv_segments": OTHERS, "causal": False},
        {"q_segments": SEGMENTS, "kv_segments": OTHERS, "window": 2},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_plain_definition(options):
    rng = np.random.default_rng(0)
    q, k, v, direction = (jnp.float32(rng.normal(size=(2, 7, H, 4))) for H in (4, 2, 2, 4))

    def value_and_pull(fn):
        @quick_jit
        def run(q, k, v):
            out, pull = jax.vjp(lambda *x: fn(*x, **options), q, k, v)
            return out, *pull(direction)

        return run(q, k, v)

    for mine, expected in zip(value_and_pull(attend), value_and_pull(plain), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"softcap": 1.0}, {"q_positions": np.arange(7)}])
def test_what_it_does_not_have_is_refused_by_name(options):
    x = jnp.zeros((1, 7, 2, 4))
    with pytest.raises(ValueError, match=next(iter(options))[-8:].strip("_")):
        attend(x, x, x, **options)
