"""Each implementation of attention against the plain one, in values and all gradients."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, EMPTY, SEGMENTS, inputs, value_and_pull

from jaxlm.kernels import chunked_attention, flash_attention
from jaxlm.nn import attention, split_attention

IMPLEMENTATIONS = {
    "split": functools.partial(split_attention.attend, block_q=4),
    "chunked": functools.partial(chunked_attention.attend, block_q=4, block_k=3),
    "flash": functools.partial(flash_attention.attend, block_q=4, block_k=3, interpret=True),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def attend(request):
    return IMPLEMENTATIONS[request.param]


@functools.cache
def plain(name):
    S, T, K, options = CASES[name]
    return value_and_pull(attention.attend, inputs(S, T, K), **options)


# Each of these is in two of the others.
IN_OTHERS = ("window", "window of one", "more queries, window", "segments and window")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in IN_OTHERS else n for n in CASES]
)
def test_values_and_gradients_are_those_of_the_plain_definition(name, attend):
    """Float32 sums in another order: 1e-5 of values and gradients of order one."""
    S, T, K, options = CASES[name]
    ours = value_and_pull(attend, inputs(S, T, K), **options)
    for mine, expected in zip(ours, plain(name), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_a_row_with_nothing_to_attend_to_is_zero_in_value_and_gradient(attend):
    out, dq, dk, dv = value_and_pull(attend, inputs(11, 11, 2), causal=False, **EMPTY)
    assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))
    empty = SEGMENTS == 2
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(dq[empty], 0)


def test_bfloat16_is_as_near_to_float32_as_the_plain_one(attend):
    wide, narrow = inputs(11, 11, 2), inputs(11, 11, 2, jnp.bfloat16)
    exact = value_and_pull(attention.attend, wide)
    ours, theirs = (value_and_pull(fn, narrow) for fn in (attend, attention.attend))
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        error, usual = (np.abs(np.float32(x) - expected).max() for x in (mine, other))
        assert error < 2 * usual


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "causal": False}])
def test_keys_that_no_query_of_a_block_reads_are_left_out(options, attend):
    """The last keys are NaN, which spreads where it is multiplied, were it by a weight of 0."""
    q, k, v, direction = inputs(12, 12, 2)
    k, v = k.at[:, 9:].set(jnp.nan), v.at[:, 9:].set(jnp.nan)
    out, dq, *_ = value_and_pull(attend, (q, k, v, direction), **options)
    assert np.isfinite(out[:, :4]).all() and np.isfinite(dq[:, :4]).all()
    assert np.isnan(out[:, 11]).all() and np.isnan(dq[:, 11]).all()  # nor is NaN hidden
