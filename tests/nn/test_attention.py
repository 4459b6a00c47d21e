"""Attention against loops in float64, and what holds for rows, masks and groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from oracles import attention_loops

from jaxlm.nn.attention import attend, attention_mask, attention_weights, masked_softmax

B, S, H, Dh = 2, 6, 4, 4
PLAIN = quick_jit(attend)
PULL = quick_jit(jax.grad(lambda q, k, v: attend(q, k, v)[:, :4].sum(), argnums=(0, 1, 2)))
SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [5, 5, 5, 5, 3, 3]])


def inputs(num_kv_heads=H, num_keys=S, num_queries=S, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (num_queries, H), (num_keys, num_kv_heads), (num_keys, num_kv_heads)
    return tuple(scale * rng.normal(size=(B, *shape, Dh)).astype(np.float32) for shape in shapes)


CASES = {
    "plain": {},
    "not causal": {"causal": False},
    "window": {"window": 2},
    "window of one": {"window": 1},
    "wide window": {"window": 100},
    "window both ways": {"window": 2, "causal": False},
    "softcap": {"softcap": 0.7},
    "segments": {"q_segments": SEGMENTS, "kv_segments": SEGMENTS},
    "segments both ways": {"q_segments": SEGMENTS, "kv_segments": SEGMENTS, "causal": False},
    "positions": {"q_positions": np.arange(S) + 3, "kv_positions": np.arange(S)[::-1].copy()},
    "positions by row": {
        "q_positions": np.array([[0, 1, 2, 0, 1, 2], [3, 4, 5, 6, 7, 8]]),
        "kv_positions": np.array([[0, 1, 2, 0, 1, 2], [1, 2, 3, 9, 9, 9]]),
    },
    "all": {
        "window": 3,
        "softcap": 2.0,
        "q_segments": SEGMENTS,
        "kv_segments": SEGMENTS,
        "q_positions": np.arange(S) * 2,
        "kv_positions": np.arange(S) * 2,
    },
}


GROUPS = [(name, 2) for name in CASES] + [("plain", 4), ("plain", 1), ("all", 4), ("all", 1)]


@pytest.mark.parametrize(("name", "num_kv_heads"), GROUPS)
def test_attend_is_its_definition(name, num_kv_heads):
    q, k, v = inputs(num_kv_heads)

    @quick_jit
    def both(q, k, v):
        return attend(q, k, v, **CASES[name]), attention_weights(q, k, **CASES[name])

    for ours, exact in zip(
        both(q, k, v), attention_loops.attend(q, k, v, **CASES[name]), strict=True
    ):
        np.testing.assert_allclose(ours, exact, atol=2e-6)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 5), (3, 7)])
def test_queries_and_keys_may_differ_in_number(num_queries, num_keys):
    q, k, v = inputs(2, num_keys, num_queries)
    at = {"q_positions": np.arange(num_queries) + num_keys - num_queries}
    out, _ = attention_loops.attend(q, k, v, **at)
    np.testing.assert_allclose(PLAIN(q, k, v, **at), out, atol=2e-6)


def test_grouped_heads_equal_repeated_heads():
    q, k, v = inputs(2)
    repeated = (np.repeat(x, 2, axis=2) for x in (k, v))
    np.testing.assert_allclose(PLAIN(q, k, v), PLAIN(q, *repeated), atol=1e-6)


def test_the_mask_keeps_what_is_true():
    mask = attention_mask(jnp.arange(4), jnp.arange(4), window=2)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(mask, np.array(expected, bool))


EMPTY = {"q_segments": SEGMENTS, "kv_segments": np.where(SEGMENTS == 2, 9, SEGMENTS)}


def test_a_row_with_nothing_to_attend_to_is_zero_in_value_and_gradient():
    q, k, v = inputs(2)
    empty = SEGMENTS == 2

    def total(q, k, v, keep):
        out = attend(q, k, v, causal=False, **EMPTY)
        return jnp.sum(jnp.sin(out) * keep[..., None, None]), out

    grad = quick_jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    (dq, dk, dv), out = grad(q, k, v, np.ones((B, S)))
    assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(dq[empty], 0)
    assert (out[~empty] != 0).all()
    # a loss that reads only the empty rows has no gradient at all
    for only_empty in grad(q, k, v, empty)[0]:
        np.testing.assert_array_equal(only_empty, 0)


def test_keys_that_nobody_may_read_have_zero_gradient_whatever_they_hold():
    q, k, v = inputs()
    k[:, 4:], v[:, 4:] = 1e30, 1e30
    grads = PULL(q, k, v)
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[:, 4:], 0)


@pytest.mark.parametrize("scale", [10.0, 1e3, 1e8])
def test_large_scores_neither_overflow_nor_leave_the_definition(scale):
    q, k, v = inputs()
    out = PLAIN(scale * q, k, v)
    # in float32 a score of 1e8 is off by some units, so nearly equal scores may swap there
    expected, _ = attention_loops.attend(scale * q, k, v)
    np.testing.assert_allclose(out, expected, atol=1e-6 * scale if scale < 1e4 else 1e-2)
    assert np.isfinite(PULL(scale * q, k, v)[0]).all()


def test_masked_softmax_rows_sum_to_one_or_zero():
    rng = np.random.default_rng(0)
    mask = rng.random((50, 7)) < 0.3
    mask[0] = False
    p = masked_softmax(jnp.float32(rng.normal(size=(50, 7))), jnp.asarray(mask))
    np.testing.assert_allclose(p.sum(-1), mask.any(-1).astype(float), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(p)[~mask], 0)


def test_scores_and_softmax_of_bfloat16_are_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in map(jnp.asarray, inputs()))
    weights, out = attention_weights(q, k), attend(q, k, v)
    assert weights.dtype == jnp.float32
    assert out.dtype == jnp.bfloat16
    wide = (np.asarray(x, np.float64) for x in (q, k, v))
    expected, exact_weights = attention_loops.attend(*wide)
    np.testing.assert_allclose(weights, exact_weights, atol=1e-5)
    # bfloat16 has 8 bits: weights and the result are rounded once each
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-2)


def test_the_gradient_is_that_of_the_definition():
    q, k, v = inputs(2)
    options = {"softcap": 2.0, "window": 3}
    direction = [np.random.default_rng(1).normal(size=x.shape) for x in (q, k, v)]
    squares = jax.grad(lambda *x: jnp.sum(attend(*x, **options) ** 2), argnums=(0, 1, 2))
    grads = quick_jit(squares)(q, k, v)
    slope = sum(
        (np.asarray(g, np.float64) * d).sum() for g, d in zip(grads, direction, strict=True)
    )

    def moved(h):
        at = (x + h * d for x, d in zip((q, k, v), direction, strict=True))
        return (attention_loops.attend(*at, **options)[0] ** 2).sum()

    # central difference in float64: error of order h^2
    np.testing.assert_allclose(slope, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-5)


def test_attend_compiles_and_maps_over_a_batch_of_batches():
    q, k, v = (np.stack([x, 2 * x]) for x in inputs(2))
    mapped = quick_jit(jax.vmap(functools.partial(attend, window=3)))(q, k, v)
    np.testing.assert_allclose(mapped[1], attend(q[1], k[1], v[1], window=3), atol=1e-6)
