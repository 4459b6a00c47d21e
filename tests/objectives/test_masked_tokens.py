"""The 80/10/10 rule by counting, and the loss over the masked tokens alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from given_logits import model_of
from scipy import special, stats

from jaxlm.data.batches import Batch
from jaxlm.models import encoder
from jaxlm.models.encoder import EncoderConfig
from jaxlm.objectives.masked_tokens import make_loss_fn, mask_tokens

MASK, SPECIAL, V = 3, 4, 54
RULE = {"mask_id": MASK, "num_special": SPECIAL, "vocab_size": V}
TOKENS = np.random.default_rng(0).integers(V, size=(1000, 200)).astype(np.int32)
READ, CHOSEN = (
    np.asarray(x) for x in mask_tokens(jax.random.key(0), jnp.asarray(TOKENS), **RULE, rate=0.15)
)


def share_is(found, total, expected):
    """Within five standard deviations of a binomial share."""
    assert abs(found / total - expected) < 5 * np.sqrt(expected * (1 - expected) / total)


def test_fifteen_percent_of_the_words_are_chosen_and_no_special_id():
    words = TOKENS >= SPECIAL
    assert not CHOSEN[~words].any()
    share_is(CHOSEN[words].sum(), words.sum(), 0.15)
    np.testing.assert_array_equal(READ[CHOSEN == 0], TOKENS[CHOSEN == 0])


def test_of_the_chosen_80_are_masked_10_drawn_and_10_left():
    chosen = CHOSEN == 1
    read, was, n = READ[chosen], TOKENS[chosen], chosen.sum()
    share_is((read == MASK).sum(), n, 0.8)
    share_is((read == was).sum(), n, 0.1 + 0.1 / (V - SPECIAL))  # a drawn word may be the same
    drawn = read[(read != MASK) & (read != was)]
    assert drawn.min() >= SPECIAL
    assert stats.chisquare(np.bincount(drawn, minlength=V)[SPECIAL:]).pvalue > 1e-4  # all alike


def test_the_loss_is_that_of_the_masked_tokens_divided_by_how_many():
    """Of a model whose logits are given: the weights pick the places, the targets the originals."""
    logits = np.random.default_rng(1).normal(size=(4, 20, V)).astype(np.float32)
    model = model_of(lambda params, tokens, **options: params)
    tokens, counts = TOKENS[:4, :20], np.ones((4, 20), np.float32)
    counts[0] = 0
    key = jax.random.key(7)
    loss = make_loss_fn(model, **RULE, rate=0.5)
    arguments = (logits, {}, {"kept": 1}, {}, Batch(tokens, None, counts), key)
    total, (metrics, carry) = quick_jit(loss)(*arguments)
    _, chosen = mask_tokens(jax.random.split(key)[0], tokens, **RULE, rate=0.5)
    log_p = special.log_softmax(logits.astype(np.float64), axis=-1)
    nll = -np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    weights = np.asarray(chosen) * counts
    assert weights.sum() > 10 and carry == {"kept": 1}
    np.testing.assert_allclose(total, (nll * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), np.average(nll, weights=weights), 1e-5)


def test_the_model_never_sees_what_is_masked():
    """The loss' gradient by the token table is the same whichever masked word was right."""
    cfg = EncoderConfig(vocab_size=V, context_length=8, num_layers=1, d_model=8, num_heads=2)
    model = encoder.build_masked_lm(cfg)

    @quick_jit
    def what_it_sees(params, batch, key):
        seen = []

        def watched(params, tokens, **options):
            seen.append(tokens)
            return model.forward(params, tokens, **options)

        loss = make_loss_fn(model_of(watched), **RULE, rate=0.5)
        loss(params, {}, {}, {}, batch, key)
        return seen

    params = jax.tree.map(
        lambda s: jnp.ones(s.shape), model.specs, is_leaf=lambda s: not isinstance(s, dict)
    )
    tokens, key = TOKENS[:2, :8], jax.random.key(0)
    [seen] = what_it_sees(params, Batch(tokens, None, np.ones((2, 8), np.float32)), key)
    read, chosen = mask_tokens(jax.random.split(key)[0], tokens, **RULE, rate=0.5)
    np.testing.assert_array_equal(seen, read)
    assert (np.asarray(read) != tokens)[np.asarray(chosen) == 1].mean() > 0.5


@pytest.mark.parametrize("chunk", [None, 10])
def test_a_masked_lm_trains_whole_or_in_parts_of_the_vocabulary(chunk):
    cfg = EncoderConfig(
        vocab_size=V, context_length=8, num_layers=1, d_model=8, num_heads=2, dropout=0.1
    )
    model = encoder.build_masked_lm(cfg)
    loss = make_loss_fn(model, **RULE, rate=0.5, vocab_chunk=chunk)
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), jnp.float32),
        model.specs,
        is_leaf=lambda s: not isinstance(s, dict),
    )
    batch = Batch(TOKENS[:2, :8], None, np.ones((2, 8), np.float32), np.ones((2, 8), np.int32))
    run = quick_jit(jax.value_and_grad(loss, has_aux=True))
    (total, _), grads = run(params, {}, {}, {}, batch, jax.random.key(0))
    assert np.isfinite(total) and np.abs(grads["predictions"]["w"]).max() > 0
    WHOLE.setdefault("loss", total)
    np.testing.assert_allclose(total, WHOLE["loss"], rtol=1e-5)


WHOLE: dict = {}
