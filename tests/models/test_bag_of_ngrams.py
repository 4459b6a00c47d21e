"""The bag of n-grams against a loop in numpy, and what it can and cannot tell apart."""

import jax
import numpy as np
import pytest
from compiling import quick_jit
from scipy import special

from jaxlm.core import trees
from jaxlm.data.examples import Examples
from jaxlm.data.ngrams import buckets
from jaxlm.models import bag_of_ngrams
from jaxlm.models.bag_of_ngrams import BagConfig
from jaxlm.objectives.classification import make_loss_fn

CFG = BagConfig(num_classes=3, num_words=50, num_ngrams=100, max_n=2, d_model=4)
TEXTS = ["the soup was not fine", "fine", ""]
RNG = np.random.default_rng(0)
PARAMS = trees.map_with_path(
    lambda _, spec: RNG.normal(size=spec.shape).astype(np.float32), bag_of_ngrams.param_specs(CFG)
)


def test_scores_are_the_softmax_of_a_mean_of_embeddings():
    scores = bag_of_ngrams.score(PARAMS, TEXTS, CFG)
    for text, score in zip(TEXTS, scores, strict=True):
        found = buckets(text, num_words=50, num_ngrams=100, max_n=2)
        mean = PARAMS["embed"][found].astype(np.float64).mean(0) if len(found) else np.zeros(4)
        np.testing.assert_allclose(score, special.softmax(mean @ PARAMS["head"]), atol=1e-6)
    np.testing.assert_allclose(scores[2], 1 / 3, atol=1e-6)


def test_order_shows_by_bigrams_and_not_by_words():
    texts = ["not fine but good", "not good but fine"]
    words = BagConfig(num_classes=3, num_words=50, num_ngrams=100, max_n=1, d_model=4)
    first, second = bag_of_ngrams.score(PARAMS, texts, words)
    np.testing.assert_allclose(first, second, atol=1e-6)
    first, second = bag_of_ngrams.score(PARAMS, texts, CFG)
    assert np.abs(first - second).max() > 1e-3


def test_it_starts_indifferent_and_learns_a_bigram():
    specs = bag_of_ngrams.param_specs(CFG)
    params = {name: spec.init(jax.random.key(0), spec) for name, spec in specs.items()}
    assert np.abs(params["embed"]).max() <= 1 / 4
    texts = ["not fine but good", "not good but fine"] * 4
    np.testing.assert_allclose(bag_of_ngrams.score(params, texts, CFG), 1 / 3, atol=1e-6)
    loss = make_loss_fn(bag_of_ngrams.build(CFG))
    batch = Examples(bag_of_ngrams.bag_of(texts, CFG), np.array([0, 1] * 4, np.int32))

    @quick_jit
    def step(params):
        grads, _ = jax.grad(loss, has_aux=True)(params, {}, {}, {}, batch, None)
        return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)

    for _ in range(60):
        params = step(params)
    assert bag_of_ngrams.score(params, texts, CFG).argmax(1).tolist() == [0, 1] * 4


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="max_n=0 must be at least 1"):
        BagConfig(max_n=0)
