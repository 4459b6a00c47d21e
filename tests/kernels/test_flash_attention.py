"""Flash attention, its kernels interpreted, against the plain one in values and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, EMPTY, SEGMENTS, inputs, value_and_pull

from jaxlm.kernels.flash_attention import attend
from jaxlm.nn.attention import attend as plain

FLASH = functools.partial(attend, block_q=4, block_k=3, interpret=True)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_definition(name):
    """Float32 sums in another order: 1e-5 of values and gradients of order one."""
    S, T, K, options = CASES[name]
    arrays = inputs(S, T, K)
    ours, exact = (value_and_pull(fn, arrays, **options) for fn in (FLASH, plain))
    for mine, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_a_row_with_nothing_to_attend_to_is_zero_in_value_and_gradient():
    out, dq, dk, dv = value_and_pull(FLASH, inputs(11, 11, 2), causal=False, **EMPTY)
    assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))
    empty = SEGMENTS == 2
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(dq[empty], 0)


def test_bfloat16_is_as_near_to_float32_as_the_plain_one():
    wide, narrow = inputs(11, 11, 2), inputs(11, 11, 2, jnp.bfloat16)
    exact = value_and_pull(plain, wide)
    ours, theirs = (value_and_pull(fn, narrow) for fn in (FLASH, plain))
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        error, usual = (np.abs(np.float32(x) - expected).max() for x in (mine, other))
        assert error < 2 * usual


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "causal": False}])
def test_blocks_that_nobody_reads_are_not_computed(options):
    """The last keys are NaN, which spreads where it is multiplied, were it by a weight of 0."""
    q, k, v, direction = inputs(12, 12, 2)
    k, v = k.at[:, 9:].set(jnp.nan), v.at[:, 9:].set(jnp.nan)
    out, dq, *_ = value_and_pull(FLASH, (q, k, v, direction), **options)
    assert np.isfinite(out[:, :4]).all() and np.isfinite(dq[:, :4]).all()
    assert np.isnan(out[:, 11]).all() and np.isnan(dq[:, 11]).all()  # nor is NaN hidden


def test_what_is_saved_for_the_gradient_grows_with_the_length_and_not_with_its_square():
    q, k, v, _ = inputs(11, 11, 2)
    _, pull = jax.eval_shape(lambda *x: jax.vjp(FLASH, *x), q, k, v)
    saved = sorted(x.shape for x in jax.tree.leaves(pull))
    lse, q_marks, kv_marks = (2, 4, 11), (2, 1, 12), (2, 1, 12)
    assert saved == sorted([q.shape, k.shape, v.shape, q.shape, lse, q_marks, kv_marks])


def test_lanes_may_be_mapped():
    lanes = [jnp.stack([x, -x[::-1]]) for x in inputs(11, 11, 2)]
    ours, exact = (jax.vmap(functools.partial(value_and_pull, fn))(lanes) for fn in (FLASH, plain))
    for mine, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_what_it_does_not_have_is_refused_by_name():
    q, k, v, _ = inputs(3, 3, 3)
    with pytest.raises(ValueError, match="4 query heads"):
        FLASH(q, k, v)
    with pytest.raises(ValueError, match="softcap"):
        jax.jit(lambda cap: FLASH(q, q, q, softcap=cap))(0.7)
