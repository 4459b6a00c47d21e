"""Decoding with a window uses a ring by itself; the same model without one is the oracle."""

import functools

import jax
import numpy as np
import pytest
from decode_models import V, transformer

from jaxlm.decode.beam import beam_search
from jaxlm.decode.decoder import CHUNK
from jaxlm.decode.generate import generate
from jaxlm.decode.speculative import speculate

WINDOW = 3  # of the models of kind sinusoidal
RING = WINDOW + CHUNK
PROMPTS = [np.random.default_rng(n).integers(V, size=n) for n in (290, 1, 129, 257)]
OPTIONS = {"num_tokens": 40, "stop_ids": [2]}


@pytest.fixture(scope="module")
def models():
    """(with a ring, without), params, and the sizes of the caches that were asked for."""
    model, params = transformer("sinusoidal")
    sizes = []

    def init_cache(batch_size, length):
        sizes.append(length)
        return model.init_cache(batch_size, length)

    watched = model._replace(init_cache=init_cache)
    assert watched.window == WINDOW
    return watched, watched._replace(window=None), params, sizes


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_generate(models, temperature):
    ring, full, params, sizes = models
    run = functools.partial(
        generate, params=params, prompts=PROMPTS, key=jax.random.key(0), temperature=temperature
    )
    del sizes[:]
    got, want = run(ring, **OPTIONS), run(full, **OPTIONS)
    assert temperature or sizes == [RING, 512]
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.lengths, want.lengths)


def test_a_short_text_has_a_plain_cache(models):
    ring, _, params, sizes = models
    del sizes[:]
    generate(ring, params, [[1, 2]], jax.random.key(0), num_tokens=20)
    assert sizes == [32]


def test_beam_search(models):
    ring, full, params, _ = models
    run = functools.partial(beam_search, params=params, prompts=PROMPTS, width=3, **OPTIONS)
    got, want = run(ring), run(full)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)


def test_speculation(models):
    ring, full, params, _ = models
    draft, draft_params = transformer("sinusoidal", num_layers=1)
    key = jax.random.key(0)
    got = speculate(
        ring, params, draft, draft_params, PROMPTS, key, temperature=0.0, num_drafted=5, **OPTIONS
    )
    want = generate(full, params, PROMPTS, key, temperature=0.0, **OPTIONS)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    assert got.acceptance_rate < 1
