"""What holds for any weights: causality, packing, cached decoding, remat, dtypes, dropout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.core import trees
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.attention import attend

V, S = 13, 10
BASE = TransformerConfig(
    vocab_size=V, context_length=12, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=24
)
TOKENS = np.random.default_rng(0).integers(V, size=(2, S)).astype(np.int32)


def vary(**changes):
    return dataclasses.replace(BASE, **changes)


def with_token(t, row=0):
    changed = TOKENS.copy()
    changed[row, t] = (changed[row, t] + 1) % V
    return changed


CAUSAL = [
    vary(),
    vary(positions="learned", norm="layer", norm_placement="post", activation="gelu", bias=True),
    vary(window=3, qk_norm=True, attention_softcap=1.0),
]


@pytest.mark.parametrize("cfg", CAUSAL, ids=["rope", "learned", "window"])
@pytest.mark.parametrize("t", [0, 4, S - 1])
def test_changing_a_token_leaves_the_logits_before_it_bit_equal(cfg, t, forward_of, params_of):
    before = forward_of(cfg)(params_of(cfg), TOKENS)
    after = forward_of(cfg)(params_of(cfg), with_token(t))
    np.testing.assert_array_equal(after[0, :t], before[0, :t])
    np.testing.assert_array_equal(after[1], before[1])
    assert not np.array_equal(after[0, t], before[0, t])


@functools.cache
def embedding_gradient(cfg, packed=False):
    """Jitted (params, tokens, t, segments) -> d logits[0, t].sum() / d embedding at each place.

    Every place is given a vocabulary row of its own, so a row's gradient is that of the place.
    """

    def total(table, params, t, segments):
        own = jnp.arange(S)[None]
        logits = transformer.forward({**params, "embed": table}, own, cfg, segment_ids=segments)
        return jnp.sum(jnp.sin(logits[0, t]))

    def grad(params, tokens, t, segments=None):
        return jax.grad(total)(params["embed"][tokens[0]], params, t, segments)

    return quick_jit(grad)


@pytest.mark.parametrize("t", [0, 4, S - 1])
def test_the_gradient_of_a_logit_is_exactly_zero_after_it_and_nonzero_before(t, params_of):
    cfg = vary(vocab_size=S)
    grad = np.asarray(embedding_gradient(cfg)(params_of(cfg), TOKENS % S, t))
    np.testing.assert_array_equal(grad[t + 1 :], 0)
    assert (np.abs(grad[: t + 1]).max(axis=-1) > 1e-6).all()


SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0]] * 2, np.int32)


@pytest.mark.parametrize("t", [0, 2, 3, 6, 8, 9])
def test_the_gradient_of_a_logit_stays_within_its_packed_segment(t, params_of):
    cfg = vary(vocab_size=S)
    grad = np.asarray(embedding_gradient(cfg)(params_of(cfg), TOKENS % S, t, SEGMENTS[:1]))
    reached = (SEGMENTS[0] == SEGMENTS[0, t]) & (np.arange(S) <= t)
    np.testing.assert_array_equal(grad[~reached], 0)
    assert (np.abs(grad[reached]).max(axis=-1) > 1e-6).all()


@pytest.mark.parametrize("t", [1, 5, 7])
def test_changing_a_token_leaves_every_other_packed_segment_bit_equal(t, forward_of, params_of):
    forward = forward_of(BASE)
    before = forward(params_of(BASE), TOKENS, segment_ids=SEGMENTS)
    after = forward(params_of(BASE), with_token(t), segment_ids=SEGMENTS)
    touched = (SEGMENTS[0] == SEGMENTS[0, t]) & (np.arange(S) >= t)
    np.testing.assert_array_equal(after[0, ~touched], before[0, ~touched])
    assert (after[0, touched] != before[0, touched]).any(axis=-1).all()


@pytest.mark.parametrize("cfg", CAUSAL, ids=["rope", "learned", "window"])
def test_a_packed_segment_equals_the_same_tokens_alone(cfg, forward_of, params_of):
    packed = forward_of(cfg)(params_of(cfg), TOKENS, segment_ids=SEGMENTS)
    for start, end in ((0, 3), (3, 7), (7, 9)):
        # padded behind, where causality hides it, so that one program serves all
        alone = np.zeros_like(TOKENS)
        alone[:, : end - start] = TOKENS[:, start:end]
        expected = forward_of(cfg)(params_of(cfg), alone)[:, : end - start]
        np.testing.assert_allclose(packed[:, start:end], expected, atol=1e-5)


def test_an_encoder_sees_both_ways(forward_of, params_of):
    cfg = vary(causal=False)
    before, after = (forward_of(cfg)(params_of(cfg), x) for x in (TOKENS, with_token(5)))
    assert (np.asarray(before[0]) != np.asarray(after[0])).any(axis=-1).all()
    np.testing.assert_array_equal(before[1], after[1])


# ---- cached decoding

DECODED = {
    "rope": vary(),
    "learned": vary(
        positions="learned", norm="layer", bias=True, activation="gelu", tied_head=True
    ),
    "sinusoidal": vary(positions="sinusoidal", norm_placement="post", rope_layout="half"),
    "none": vary(positions="none", norm_placement="none", head_bias=True, logit_softcap=2.0),
    "window": vary(window=3, qk_norm=True, attention_softcap=1.0, rope_layout="half"),
}


@pytest.mark.parametrize("cfg", DECODED.values(), ids=DECODED.keys())
def test_one_by_one_decoding_equals_the_full_forward_everywhere(
    cfg, forward_of, extend_of, params_of
):
    params, full = params_of(cfg), forward_of(cfg)(params_of(cfg), TOKENS)
    cache = transformer.init_cache(cfg, 2, 12)
    for t in range(S):
        logits, cache = extend_of(cfg)(params, TOKENS[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[:, 0], full[:, t], atol=1e-5)
        np.testing.assert_array_equal(cache.length, [t + 1, t + 1])


def in_chunks(extend, params, tokens, cache, sizes):
    logits, at = [], 0
    for size in sizes:
        part, cache = extend(params, tokens[:, at : at + size], cache)
        logits.append(part)
        at += size
    return np.concatenate(logits, axis=1), cache


@pytest.mark.parametrize("sizes", [(S,), (1, 4, 1, 4)])
def test_chunks_of_any_size_equal_the_full_forward(sizes, forward_of, extend_of, params_of):
    full = forward_of(BASE)(params_of(BASE), TOKENS)
    cache = transformer.init_cache(BASE, 2, 12)
    logits, _ = in_chunks(extend_of(BASE), params_of(BASE), TOKENS, cache, sizes)
    np.testing.assert_allclose(logits, full, atol=1e-5)


def test_tokens_taken_back_are_as_if_never_read(extend_of, params_of):
    params, extend = params_of(BASE), extend_of(BASE)
    start = transformer.init_cache(BASE, 2, 12)
    _, four = in_chunks(extend, params, TOKENS, start, (4,))
    _, eight = in_chunks(extend, params, with_token(5)[:, 4:8], four, (4,))
    back = transformer.build(BASE).take_back(eight, four.length)
    straight, _ = extend(params, TOKENS[:, 4:8], four)
    again, _ = extend(params, TOKENS[:, 4:8], back)
    np.testing.assert_array_equal(again, straight)


def test_rows_of_a_cache_may_hold_different_lengths(forward_of, extend_of, params_of):
    params, extend = params_of(BASE), extend_of(BASE)
    _, cache = in_chunks(extend, params, TOKENS, transformer.init_cache(BASE, 2, 12), (4,))
    cache = cache.replace(length=jnp.array([4, 2]))
    shifted = np.stack([TOKENS[0, 4:8], TOKENS[1, 2:6]])
    logits, cache = extend(params, shifted, cache)
    full = forward_of(BASE)(params, TOKENS)
    np.testing.assert_allclose(logits[0], full[0, 4:8], atol=1e-5)
    np.testing.assert_allclose(logits[1], full[1, 2:6], atol=1e-5)
    np.testing.assert_array_equal(cache.length, [8, 6])


def test_padding_behind_a_rows_tokens_is_not_taken(extend_of, params_of):
    params, extend = params_of(BASE), extend_of(BASE)
    start = transformer.init_cache(BASE, 2, 12)
    _, straight = extend(params, TOKENS[:, :4], start)
    padded = np.where(np.arange(4) < np.array([[4], [2]]), TOKENS[:, :4], 0)
    _, cache = extend(params, padded, start, lengths=jnp.array([4, 2]))
    np.testing.assert_array_equal(cache.length, [4, 2])
    logits, _ = extend(params, TOKENS[:, 2:4], cache)
    same, _ = extend(params, TOKENS[:, 2:4], straight.replace(length=jnp.array([4, 2])))
    np.testing.assert_array_equal(logits, same)


# The programs round bfloat16 at other places: the one keeps float32 where it fuses.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 6e-2)])
def test_weights_made_ready_for_decoding_give_the_same_logits(
    dtype, tolerance, extend_of, params_of
):
    cfg = vary(dtype=dtype)
    params, cache = params_of(cfg), transformer.init_cache(cfg, 2, 12)
    ready = transformer.decoding_params(params, cfg)
    logits, _ = in_chunks(extend_of(cfg), params, TOKENS, cache, (4, 1, 1, 4))
    again, _ = in_chunks(extend_of(cfg), ready, TOKENS, cache, (4, 1, 1, 4))
    np.testing.assert_allclose(again, logits, atol=tolerance)


def test_an_encoder_has_no_cached_decoding(params_of):
    cfg = vary(causal=False)
    with pytest.raises(ValueError, match="causal"):
        transformer.extend(params_of(cfg), TOKENS, transformer.init_cache(cfg, 2, 12), cfg)


def test_more_tokens_than_learned_positions_are_refused(params_of):
    cfg = vary(positions="learned", context_length=S - 1)
    with pytest.raises(ValueError, match="context_length"):
        jax.eval_shape(lambda p: transformer.forward(p, TOKENS, cfg), params_of(cfg))


# ---- choices that must not show


@functools.cache
def value_and_grad(cfg):
    def loss(params, tokens, key=None):
        return jnp.mean(jnp.square(transformer.forward(params, tokens, cfg, key=key)))

    return quick_jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("change", [{"remat": "full"}, {"remat": "dots", "scan_unroll": 2}])
def test_remat_and_unrolling_change_neither_values_nor_gradients(change, params_of):
    value, grads = value_and_grad(BASE)(params_of(BASE), TOKENS)
    other, other_grads = value_and_grad(vary(**change))(params_of(BASE), TOKENS)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_grads, grads)


def test_layers_can_be_written_out_from_outside(params_of):
    def num_scans(**options):
        run = transformer.build(BASE, **options).hidden
        return str(jax.make_jaxpr(run)(params_of(BASE), TOKENS)).count("unroll=2")

    assert (num_scans(), num_scans(unroll=2)) == (0, 1)


def test_attention_and_constraints_come_in_as_functions(params_of, forward_of):
    seen = []

    def constrain(x, axes):
        seen.append((x.shape, axes))
        return x

    def doubled(q, k, v, **options):
        return 2 * attend(q, k, v, **options)

    run = functools.partial(transformer.forward, cfg=BASE, attend=doubled, constrain=constrain)
    logits = quick_jit(run)(params_of(BASE), TOKENS)
    params = dict(params_of(BASE))
    params["blocks"] = params["blocks"] | {"wo": 2 * params["blocks"]["wo"]}
    np.testing.assert_allclose(logits, forward_of(BASE)(params, TOKENS), atol=1e-5)
    stream, table = (2, S, 16), params["embed"].shape
    assert set(seen) == {(stream, ("batch", "seq", "embed_act")), (table, ("vocab", "embed_act"))}


# ---- dtypes


def test_bfloat16_compute_keeps_float32_logits_and_gradients(params_of, forward_of):
    half = vary(dtype="bfloat16")
    params = params_of(BASE)
    x = jax.eval_shape(lambda p: transformer.hidden(p, TOKENS, half), params)
    assert x.dtype == jnp.bfloat16
    logits, exact = forward_of(half)(params, TOKENS), forward_of(BASE)(params, TOKENS)
    assert logits.dtype == jnp.float32
    # bfloat16 has 8 bits; a handful of roundings on the way
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(logits - exact).max() > 1e-4  # and it was in fact computed in bfloat16
    _, grads = jax.eval_shape(value_and_grad(half), params, TOKENS)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    cache = transformer.init_cache(half, 2, 12)
    assert {each.dtype for each in (*cache.k, *cache.v)} == {jnp.dtype("bfloat16")}


def test_float32_gains_are_not_rounded_in_bfloat16_compute(params_of):
    half = vary(dtype="bfloat16")
    params = params_of(BASE)
    nudged = {**params, "final_norm": params["final_norm"] * 1.002}  # lost in bfloat16
    hidden = quick_jit(functools.partial(transformer.hidden, cfg=half))
    assert not np.array_equal(hidden(params, TOKENS), hidden(nudged, TOKENS))


@pytest.fixture(scope="module")
def repeated_gradients(params_of):
    """Gradients of a sum over one token, and over 2,048 times that token, all in bfloat16."""
    cfg = vary(
        num_layers=1,
        norm_placement="none",
        positions="none",
        bias=True,
        activation="relu",
        window=1,  # so that no token sees another
        dtype="bfloat16",
    )

    def total(params, tokens):
        return jnp.sum(transformer.hidden(params, tokens, cfg).astype(jnp.float32))

    grad = quick_jit(jax.grad(total))
    return [grad(params_of(cfg), np.zeros(shape, np.int32)) for shape in ((1, 1), (4, 512))]


@pytest.mark.parametrize(
    "path",
    [
        "embed",
        "blocks/bo",
        "blocks/b_down",
        "blocks/wv",
        pytest.param(
            "blocks/w_up",
            marks=pytest.mark.xfail(
                jax.__version_info__ >= (0, 11),
                reason="XLA:CPU of the newer jaxlib sums this bfloat16 product in bfloat16",
            ),
        ),
    ],
)
def test_a_gradient_summed_over_many_tokens_survives_bfloat16(path, repeated_gradients):
    # A sum taken in bfloat16 stops growing after 256 equal terms.
    one, many = (np.asarray(trees.flatten(grads)[path]) for grads in repeated_gradients)
    np.testing.assert_allclose(many, 2048 * one, rtol=0.02, atol=0.02 * 2048 * np.abs(one).max())


# ---- dropout

DROPPING = vary(dropout=0.3)


def test_dropout_is_off_without_a_key(forward_of, params_of):
    without = forward_of(BASE)(params_of(BASE), TOKENS)
    np.testing.assert_array_equal(forward_of(DROPPING)(params_of(BASE), TOKENS), without)


def test_dropout_is_a_function_of_its_key(forward_of, params_of):
    forward, params = forward_of(DROPPING), params_of(BASE)
    first, again, other = (forward(params, TOKENS, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_traced_rate_replaces_the_one_of_the_config(forward_of, params_of):
    forward, key, params = forward_of(DROPPING), jax.random.key(0), params_of(BASE)
    from_config = forward(params, TOKENS, key=key)
    given = forward(params, TOKENS, key=key, dropout=jnp.float32(0.3))
    np.testing.assert_allclose(given, from_config, atol=1e-5)
    none = forward(params, TOKENS, key=key, dropout=jnp.float32(0.0))
    np.testing.assert_allclose(none, forward(params, TOKENS), atol=1e-5)


def test_the_mean_over_masks_is_the_value_without_dropout():
    # One linear branch: without norm, activation or residual the stream is linear in the masks.
    cfg = vary(num_layers=1, norm_placement="none", positions="none", activation="relu", window=1)
    params = {
        "embed": jnp.ones((V, 16)),
        "unembed": jnp.eye(16, V),
        "blocks": {
            "wq": jnp.zeros((1, 16, 4, 4)),
            "wk": jnp.zeros((1, 16, 2, 4)),
            "wv": jnp.ones((1, 16, 2, 4)) / 16,
            "wo": jnp.ones((1, 4, 4, 16)) / 16,
            "w_up": jnp.zeros((1, 16, 24)),
            "w_down": jnp.zeros((1, 24, 16)),
        },
    }
    run = quick_jit(
        jax.vmap(lambda key: transformer.hidden(params, TOKENS, cfg, key=key, dropout=0.5))
    )
    streams = np.asarray(run(jax.random.split(jax.random.key(0), 400)))
    # the stream is m0 * 1 + m1 * mean(m0) with masks of mean 1; standard error below 1.6 / sqrt(n)
    assert abs(streams.mean() - 2.0) < 4 * 1.6 / np.sqrt(400 * TOKENS.size)
    assert streams.std() > 0.5
