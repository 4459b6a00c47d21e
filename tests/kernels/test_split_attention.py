"""Attention in groups of queries against the plain one, and the keys that a group leaves out."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, inputs, value_and_pull

from jaxlm.nn.attention import attend as plain
from jaxlm.nn.split_attention import attend

SPLIT = functools.partial(attend, block_q=4)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_definition(name):
    """Float32 sums in another order: 1e-5 of values and gradients of order one."""
    S, T, K, options = CASES[name]
    arrays = inputs(S, T, K)
    ours, exact = (value_and_pull(fn, arrays, **options) for fn in (SPLIT, plain))
    for mine, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 3, "causal": False}])
def test_keys_that_no_query_of_a_group_reads_are_left_out(options):
    """The last keys are NaN, which spreads where it is multiplied, were it by a weight of 0."""
    q, k, v, direction = inputs(12, 12, 2)
    k, v = k.at[:, 9:].set(jnp.nan), v.at[:, 9:].set(jnp.nan)
    out, dq, *_ = value_and_pull(SPLIT, (q, k, v, direction), **options)
    assert np.isfinite(out[:, :4]).all() and np.isfinite(dq[:, :4]).all()
    assert np.isnan(out[:, 11]).all() and np.isnan(dq[:, 11]).all()  # nor is NaN hidden


@pytest.mark.parametrize(("length", "group"), [(32, 32), (64, 32), (256, 64), (640, 128)])
def test_groups_by_length(length, group):
    """A last value that is NaN reaches the queries of its own group only."""
    x = jnp.ones((1, length, 1, 2))
    out = attend(x, x, x.at[:, -1].set(jnp.nan))
    assert np.isnan(out[0, :, 0, 0]).sum() == group
