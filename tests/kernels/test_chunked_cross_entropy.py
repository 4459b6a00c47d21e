"""The chunked loss against the plain one, in values and all gradients; and what it never holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.models import transformer
from jaxlm.models.scoring import score_targets

V = 13
WEIGHTS = np.ones((2, 6))


@functools.cache
def scores_and_pull(cfg, vocab_chunk):
    """Jitted (params, batch) -> the scores, and the gradients of a loss that reads all three."""
    model = transformer.build(cfg)

    def loss(params, batch):
        nll, log_z, mean = score_targets(model, params, batch, vocab_chunk=vocab_chunk)
        total = jnp.sum(jnp.sin(nll) + 0.1 * log_z**2 + 0.3 * mean)
        return total, (nll, log_z, mean)

    return quick_jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("chunk", "changes"),
    [
        *((chunk, {}) for chunk in (1, 4, V, 50)),
        (4, {"tied_head": True}),
        (4, {"head_bias": True, "logit_softcap": 2.0}),
    ],
)
def test_scores_and_gradients_are_those_of_whole_logits(
    chunk, changes, small_cfg, params_of, make_batch
):
    """Float32 sums in another order: 2e-5 of gradients of order one to fifty."""
    cfg = dataclasses.replace(small_cfg, **changes)
    batch, params = make_batch(0, WEIGHTS), params_of(cfg)
    ours, exact = (scores_and_pull(cfg, c)(params, batch) for c in (chunk, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-6), ours, exact)


def test_large_logits_neither_overflow_nor_leave_the_definition(small_cfg, params_of, make_batch):
    batch, params = make_batch(0, WEIGHTS), dict(params_of(small_cfg))
    params["unembed"] = 1e3 * params["unembed"]
    ours, exact = (scores_and_pull(small_cfg, c)(params, batch)[1] for c in (4, None))
    for mine, expected in zip(ours, exact, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-3)


def test_bfloat16_weights_of_the_head_are_rounded_as_in_the_plain_loss(
    small_cfg, params_of, make_batch
):
    cfg = dataclasses.replace(small_cfg, dtype="bfloat16")
    batch, params = make_batch(0, WEIGHTS), params_of(cfg)
    ours, exact = (scores_and_pull(cfg, c)(params, batch)[1] for c in (4, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, exact)


def test_whole_logits_are_never_held():
    """By the compiler's account of the gradient's temporaries; nothing is run."""
    cfg = transformer.TransformerConfig(
        vocab_size=8192, context_length=256, num_layers=1, d_model=8, num_heads=1, window=1
    )
    model = transformer.build(cfg)
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), model.specs)
    x = jax.ShapeDtypeStruct((4, 256, 8), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    whole = 4 * 256 * 8192 * 4

    def temporaries(vocab_chunk):
        head_only = model._replace(hidden=lambda params, x, **options: x)

        def loss(params, x, targets):
            batch = Tokens(x, targets)
            return jnp.sum(score_targets(head_only, params, batch, vocab_chunk=vocab_chunk).nll)

        grad = quick_jit(jax.grad(loss, argnums=(0, 1)))
        return grad.lower(params, x, targets).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(None) > whole
    assert temporaries(256) < whole / 8


@dataclasses.dataclass
class Tokens:
    tokens: jax.Array
    targets: jax.Array
    segment_ids: None = None
