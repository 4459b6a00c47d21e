"""A cache of fewer entries than a windowed text has tokens, against a full cache and none."""

import dataclasses

import numpy as np
import pytest

from jaxlm.models import transformer

WINDOW, SLACK, LENGTH = 4, 3, 41


@pytest.fixture(params=["rope", "learned", pytest.param("none", marks=pytest.mark.slow)])
def cfg(request, small_cfg):
    changes = {"positions": request.param, "window": WINDOW, "context_length": LENGTH}
    return dataclasses.replace(small_cfg, num_kv_heads=2, **changes)


def texts(cfg, rows=2):
    return np.random.default_rng(0).integers(cfg.vocab_size, size=(rows, LENGTH)).astype(np.int32)


def read(extend, params, tokens, cache, sizes):
    logits, at = [], 0
    while at < LENGTH:
        size = min(sizes[len(logits) % len(sizes)], LENGTH - at)
        part, cache = extend(params, tokens[:, at : at + size], cache)
        logits.append(part)
        at += size
    return np.concatenate(logits, axis=1), cache


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 2), (3,)], ids=str)
def test_chunks_far_beyond_the_window_are_as_with_a_full_cache_and_with_none(
    cfg, sizes, forward_of, extend_of, params_of
):
    params, tokens, extend = params_of(cfg), texts(cfg), extend_of(cfg)
    ring, cache = read(
        extend, params, tokens, transformer.init_cache(cfg, 2, WINDOW + SLACK), sizes
    )
    full, _ = read(extend, params, tokens, transformer.init_cache(cfg, 2, LENGTH), sizes)
    np.testing.assert_allclose(ring, full, atol=1e-5)
    np.testing.assert_allclose(ring, forward_of(cfg)(params, tokens), atol=1e-5)
    np.testing.assert_array_equal(cache.length, LENGTH)
    assert cache.k[0].shape[2] == WINDOW + SLACK


def test_padding_and_tokens_taken_back_leave_no_trace(cfg, forward_of, extend_of, params_of):
    """Rows that take 0 to SLACK tokens of each chunk, and give some of them back."""
    params, tokens, extend = params_of(cfg), texts(cfg, rows=3), extend_of(cfg)
    want = np.asarray(forward_of(cfg)(params, tokens))
    rng, take_back = np.random.default_rng(1), transformer.build(cfg).take_back
    cache, held, returned = transformer.init_cache(cfg, 3, WINDOW + SLACK), np.zeros(3, int), 0
    while held.min() < LENGTH - SLACK:
        taken = np.minimum(rng.integers(SLACK + 1, size=3), LENGTH - held)
        chunk = np.zeros((3, SLACK), np.int32)
        for b in range(3):
            chunk[b, : taken[b]] = tokens[b, held[b] : held[b] + taken[b]]
        logits, cache = extend(params, chunk, cache, lengths=taken)
        for b in range(3):
            there = want[b, held[b] : held[b] + taken[b]]
            np.testing.assert_allclose(logits[b, : taken[b]], there, atol=1e-5)
        kept = rng.integers(taken + 1)
        returned += (taken - kept).sum()
        held += kept
        cache = take_back(cache, np.asarray(held, np.int32))
    assert returned > 20


def test_the_positions_that_entries_hold():
    got = transformer._ring_positions(np.array([2, 5, 9]), 4)
    far = np.iinfo(np.int32).max // 2
    np.testing.assert_array_equal(got, [[0, 1, far, far], [4, 1, 2, 3], [8, 5, 6, 7]])
