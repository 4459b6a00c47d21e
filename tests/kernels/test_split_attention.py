"""Attention in groups of queries: the size of a group."""

import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.nn.split_attention import attend


@pytest.mark.parametrize(("length", "group"), [(32, 32), (64, 32), (256, 64), (640, 128)])
def test_groups_by_length(length, group):
    """A last value that is NaN reaches the queries of its own group only."""
    x = np.ones((1, length, 1, 2), np.float32)
    last = np.arange(length)[:, None, None] == length - 1
    out = np.asarray(quick_jit(attend)(x, x, np.where(last, np.float32(np.nan), x)))
    assert np.isnan(out[0, :, 0, 0]).sum() == group
