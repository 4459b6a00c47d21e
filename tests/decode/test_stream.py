import functools

import jax
import numpy as np
import pytest

from jaxlm.core import trees
from jaxlm.decode import stream
from jaxlm.decode.generate import generate
from jaxlm.decode.prompts import traced_sampling
from jaxlm.decode.stream import Streamer
from jaxlm.models.transformer import TransformerConfig, build

V = 13


@pytest.fixture(autouse=True, scope="module")
def small_and_quick():
    """Chunks of 4 and caches from 32 on; programs that compile in half the time."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK", 4)
        patch.setattr(stream, "SMALLEST_CACHE", 32)
        yield
    jax.config.update(name, before)


@functools.cache
def transformer(**options):
    cfg = TransformerConfig(
        vocab_size=V, context_length=128, num_layers=2, d_model=16, num_heads=4, **options
    )
    model, rng = build(cfg), np.random.default_rng(11)
    draw = lambda path, spec: rng.normal("norm" in path, 0.6, spec.shape)  # noqa: E731
    return model, jax.tree.map(np.float32, trees.map_with_path(draw, model.specs))


def written(streamer, ids, seed=0, num_tokens=12, **sampling):
    sampling = traced_sampling(transformer()[0], **sampling)
    options = {"num_tokens": num_tokens, "sampling": sampling}
    return list(streamer.stream(ids, jax.random.key(seed), **options))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 4, 5, 9])
def test_it_writes_what_generate_writes(length, temperature):
    model, params = transformer()
    ids = np.random.default_rng(length).integers(V, size=length)
    got = written(Streamer(model, params), ids, temperature=temperature)
    want = generate(model, params, [ids], jax.random.key(0), num_tokens=12, temperature=temperature)
    assert got == want.tokens[0].tolist()


def conversation():
    """Texts that each begin as the last one and its answer do, but two that depart from it."""
    rng, ids = np.random.default_rng(0), []
    for turn, more in enumerate((5, 3, 9, 1, 6, 7)):
        if turn == 3:  # something in the middle was dropped
            ids = ids[:2] + ids[11:]
        if turn == 4:  # the answer was rendered otherwise than it was made
            ids = ids[:-1] + [(ids[-1] + 1) % V]
        ids = ids + rng.integers(V, size=more).tolist()
        ids = ids + (yield ids)


@pytest.mark.parametrize("length", [24, 200])
def test_what_was_kept_changes_no_token_and_no_bit(length, monkeypatch):
    """Against a new one for each text; the caches grow on the way where texts are long."""
    model, params = transformer(num_kv_heads=2)
    chunks = []
    read = stream._read
    monkeypatch.setattr(stream, "_read", lambda *a, **k: chunks.append(1) or read(*a, **k))
    kept, texts = Streamer(model, params), conversation()
    ids = next(texts)
    counts = {"kept": 0, "anew": 0}
    for _ in range(5):
        chunks.clear()
        got = written(kept, ids, num_tokens=length // 8)
        counts["kept"] += len(chunks)
        chunks.clear()
        alone = Streamer(model, params)
        monkeypatch.setattr(stream, "SMALLEST_CACHE", kept._size)
        want = written(alone, ids, num_tokens=length // 8)
        counts["anew"] += len(chunks)
        monkeypatch.setattr(stream, "SMALLEST_CACHE", 32)
        assert got == want
        n = len(kept._kept)
        for mine, theirs in zip(kept._cache.k, alone._cache.k, strict=True):
            np.testing.assert_array_equal(mine[:, :, :n], theirs[:, :, :n])
        ids = texts.send(got)
    assert counts["kept"] <= counts["anew"] - 4 * (length == 24)


def test_an_answer_that_is_broken_off_leaves_it_whole():
    model, params = transformer()
    streamer = Streamer(model, params)
    options = {"num_tokens": 9, "sampling": traced_sampling(model, temperature=0.0)}
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    tokens = streamer.stream(ids, jax.random.key(0), **options)
    first = next(tokens)
    tokens.close()
    streamer.stream(ids, jax.random.key(0), **options).close()  # before its first token
    again = written(streamer, ids, temperature=0.0)
    assert again[0] == first
    assert again == written(Streamer(model, params), ids, temperature=0.0)


def test_few_programs_serve_texts_of_many_lengths():
    model, params = transformer(qk_norm=True)
    streamer = Streamer(model, params)
    before = stream._step._cache_size(), stream._read._cache_size()
    for length in range(2, 20):
        written(streamer, list(range(10)) * 2 + [0] * length, num_tokens=3, temperature=length / 9)
    after = stream._step._cache_size(), stream._read._cache_size()
    # Of each: the cache as it is made, the cache as it comes from another program; of 32 and 64.
    assert max(np.subtract(after, before)) <= 4
