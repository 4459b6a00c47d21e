"""Attention in groups of queries: the size of a group."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.split_attention import attend


@pytest.mark.parametrize(("length", "group"), [(32, 32), (64, 32), (256, 64), (640, 128)])
def test_groups_by_length(length, group):
    """A last value that is NaN reaches the queries of its own group only."""
    x = jnp.ones((1, length, 1, 2))
    out = attend(x, x, x.at[:, -1].set(jnp.nan))
    assert np.isnan(out[0, :, 0, 0]).sum() == group
