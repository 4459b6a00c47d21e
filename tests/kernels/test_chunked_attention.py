"""Chunked attention against the plain one, in values and all gradients; and what it never holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, EMPTY, SEGMENTS, inputs, value_and_pull
from compiling import quick_jit

from jaxlm.kernels.chunked_attention import attend
from jaxlm.nn.attention import attend as plain

CHUNKED = functools.partial(attend, block_q=4, block_k=3)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_definition(name):
    """Float32 sums in another order: 1e-5 of values and gradients of order one."""
    S, T, K, options = CASES[name]
    arrays = inputs(S, T, K)
    ours, exact = (value_and_pull(fn, arrays, **options) for fn in (CHUNKED, plain))
    for mine, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_a_row_with_nothing_to_attend_to_is_zero_in_value_and_gradient():
    out, dq, dk, dv = value_and_pull(CHUNKED, inputs(11, 11, 2), causal=False, **EMPTY)
    assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))
    empty = SEGMENTS == 2
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(dq[empty], 0)


def test_bfloat16_is_as_near_to_float32_as_the_plain_one():
    wide, narrow = inputs(11, 11, 2), inputs(11, 11, 2, jnp.bfloat16)
    exact = value_and_pull(plain, wide)
    ours, theirs = (value_and_pull(fn, narrow) for fn in (CHUNKED, plain))
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        error, usual = (np.abs(np.float32(x) - expected).max() for x in (mine, other))
        assert error < 2 * usual


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "causal": False}])
def test_blocks_that_nobody_reads_are_not_computed(options):
    """The last keys are NaN, which spreads where it is multiplied, were it by a weight of 0."""
    q, k, v, direction = inputs(12, 12, 2)
    k, v = k.at[:, 9:].set(jnp.nan), v.at[:, 9:].set(jnp.nan)
    out, dq, *_ = value_and_pull(CHUNKED, (q, k, v, direction), **options)
    assert np.isfinite(out[:, :4]).all() and np.isfinite(dq[:, :4]).all()
    assert np.isnan(out[:, 11]).all() and np.isnan(dq[:, 11]).all()  # nor is NaN hidden


def test_a_softcap_may_be_traced_and_lanes_mapped():
    arrays = inputs(11, 11, 2)[:3]
    caps = jnp.array([0.5, 3.0])

    def total(fn):
        each = jax.vmap(lambda cap: jnp.sum(jnp.sin(fn(*arrays, softcap=cap))))
        return quick_jit(each)(caps)

    np.testing.assert_allclose(total(CHUNKED), total(plain), atol=1e-5)


def test_memory_grows_with_the_length_and_not_with_its_square():
    """By the compiler's account of the gradient's temporaries; nothing is run."""

    def temporaries(fn, S):
        x = jax.ShapeDtypeStruct((1, S, 1, 8), jnp.float32)
        grad = quick_jit(jax.grad(lambda *x: fn(*x).sum(), argnums=(0, 1, 2)))
        return grad.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    short, long = (temporaries(attend, S) for S in (1024, 4096))
    assert long < 4.5 * short
    assert temporaries(plain, 4096) > 4 * 4096**2 > 10 * long
