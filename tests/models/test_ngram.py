"""Counted models against a plain reading of their formulas with dictionaries."""

import collections
import functools

import jax
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.data.batches import evaluation_batches, split_from_array
from jaxlm.decode.generate import generate
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.models.ngram import NgramConfig, fit

V = 6


@functools.cache
def text(length=400):
    """Ids of which the last never occurs, with something in them to learn."""
    rng = np.random.default_rng(0)
    chain, ids = rng.dirichlet(np.full(V - 1, 0.3), size=(V - 1, V - 1)), [0, 1]
    while len(ids) < length:
        ids.append(int(rng.choice(V - 1, p=chain[ids[-2], ids[-1]])))
    return np.array(ids)


def grams(n):
    """The n-grams of the text with their counts."""
    ids = text().tolist()
    return collections.Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))


def additive(context, word, alpha):
    """Of the whole context given; a context that does not occur leaves 1 / V."""
    n = len(context) + 1
    total = sum(c for gram, c in grams(n).items() if gram[:-1] == context)
    return (grams(n)[(*context, word)] + alpha) / (total + alpha * V)


@functools.cache
def kn_counts(n, order):
    """Of the highest order how often, below it after how many different tokens."""
    if n == order:
        return grams(n)
    return collections.Counter(gram[1:] for gram in grams(n + 1))


@functools.cache
def kneser_ney(context, word, order):
    n = len(context) + 1
    lower = 1 / V if n == 1 else kneser_ney(context[1:], word, order)
    counts = kn_counts(n, order)
    children = [c for gram, c in counts.items() if gram[:-1] == context and c > 0]
    if not children:
        return lower
    ones, twos = (sum(c == k for c in counts.values()) for k in (1, 2))
    discount = ones / (ones + 2 * twos) if ones else 0.5
    kept = max(counts[(*context, word)] - discount, 0)
    return (kept + discount * len(children) * lower) / sum(children)


@functools.cache
def fitted(order, smoothing):
    cfg = NgramConfig(order=order, smoothing=smoothing, alpha=0.25)
    model, params = fit(cfg, text(), V)
    return model, params, quick_jit(lambda tokens, **o: model.forward(params, tokens, **o))


ROW = np.concatenate([text()[50:57], [V - 1, 0, 3, 3, 1]])[None]  # with an id that never occurred
KINDS = [(n, s) for s in ("additive", "kneser_ney") for n in (1, 2, 3, 5)]


@pytest.mark.parametrize(("order", "smoothing"), KINDS)
def test_probabilities_are_those_of_the_formula(order, smoothing):
    probs = np.exp(fitted(order, smoothing)[2](ROW)[0])
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    for t in range(ROW.shape[1]):
        context = tuple(ROW[0, max(0, t - order + 2) : t + 1].tolist()) if order > 1 else ()
        for word in range(V):
            if smoothing == "additive":
                want = additive(context, word, 0.25)
            else:
                want = kneser_ney(context, word, order)
            assert probs[t, word] == pytest.approx(want, rel=1e-4), (t, word)


@pytest.mark.parametrize("order", [1, 3])
def test_a_cache_goes_on_and_segments_stay_apart(order):
    model, params, forward = fitted(order, "kneser_ney")
    want = forward(ROW)
    cache, parts, extend = model.init_cache(1, 12), [], quick_jit(model.extend)
    for start, end in ((0, 5), (5, 6), (6, 12)):
        logits, cache = extend(params, ROW[:, start:end], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, atol=1e-6)
    both = forward(ROW, segment_ids=np.array([[1] * 5 + [2] * 7]))
    # What stands behind is not read: one program for both.
    alone = forward(np.concatenate([ROW[:, 5:], ROW[:, :5]], axis=1))
    np.testing.assert_allclose(both[:, 5:], alone[:, :7], atol=1e-6)


def test_order_three_of_a_large_vocabulary_takes_memory_by_the_text():
    ids = np.random.default_rng(0).integers(50_000, size=2_000)
    _, params = fit(NgramConfig(order=3), ids, 50_000)
    assert sum(a.size for a in jax.tree.leaves(params)) < 10 * (50_000 + 3 * 2_000)


def test_it_is_evaluated_and_decoded_as_every_language_model():
    model, params, forward = fitted(3, "kneser_ney")
    batches = evaluation_batches(split_from_array(text()), batch_size=8, context_length=20)
    found = make_evaluator(model, token_bytes=np.ones(V, np.int32))(params, batches)
    assert found["loss"] < 0.75 * np.log(V)
    out = generate(model, params, [[0, 1], [2]], jax.random.key(0), num_tokens=20, temperature=0.0)
    assert out.tokens[0, 0] == np.argmax(forward(np.array([[0, 1]]))[0, -1])
    assert out.lengths.tolist() == [20, 20]
