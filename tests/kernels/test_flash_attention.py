"""Flash attention, its kernels interpreted: what it saves, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs, value_and_pull

from jaxlm.kernels.flash_attention import attend
from jaxlm.nn.attention import attend as plain

FLASH = functools.partial(attend, block_q=4, block_k=3, interpret=True)


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
