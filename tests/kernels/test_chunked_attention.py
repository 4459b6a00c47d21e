"""Chunked attention: what only it can do, and what it never holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import inputs
from compiling import quick_jit

from jaxlm.kernels.chunked_attention import attend
from jaxlm.nn.attention import attend as plain

CHUNKED = functools.partial(attend, block_q=4, block_k=3)


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
