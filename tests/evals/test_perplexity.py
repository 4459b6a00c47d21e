from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.models.transformer import TransformerConfig, build

V, B, S = 11, 3, 8
CONFIG = TransformerConfig(vocab_size=V, num_layers=2, d_model=16, num_heads=2)
MODEL = build(CONFIG)
TOKEN_BYTES = np.arange(1, V + 1) % 4  # some ids have no bytes, as specials


class Batch(NamedTuple):
    tokens: Any
    targets: Any
    weights: Any
    segment_ids: Any


@pytest.fixture(scope="module")
def evaluate():
    return make_evaluator(MODEL, token_bytes=TOKEN_BYTES)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda _, spec: rng.normal(0, 0.5, spec.shape).astype(np.float32)  # noqa: E731
    return trees.map_with_path(draw, MODEL.specs)


def batch(seed, num_kept):
    """`num_kept` targets count; the rest is padding in a segment of its own."""
    rng = np.random.default_rng(seed)
    weights = (np.arange(B * S) < num_kept).astype(np.float32).reshape(B, S)
    segments = np.where(weights > 0, 1 + (np.arange(S) >= 5), 0)
    ids = rng.integers(0, V, (2, B, S))
    return Batch(ids[0], ids[1], weights, segments)


def oracle(params, batches):
    """Every token on its own, in float64: (sum of nats, tokens, bytes)."""
    forward = jax.jit(MODEL.forward)
    nats = num_tokens = num_bytes = 0.0
    for b in batches:
        logits = forward(params, b.tokens, segment_ids=b.segment_ids)
        logits = np.asarray(logits, np.float64)
        for row in range(B):
            for s in range(S):
                if b.weights[row, s]:
                    probs = np.exp(logits[row, s]) / np.exp(logits[row, s]).sum()
                    nats -= np.log(probs[b.targets[row, s]])
                    num_tokens += 1
                    num_bytes += TOKEN_BYTES[b.targets[row, s]]
    return nats, num_tokens, num_bytes


def test_the_mean_is_over_all_tokens_of_unequal_batches(evaluate, params):
    batches = [batch(0, B * S), batch(1, 13), batch(2, 1)]
    nats, num_tokens, num_bytes = oracle(params, batches)
    got = evaluate(params, iter(batches))
    assert got["num_tokens"] == num_tokens == B * S + 14
    assert got["loss"] == pytest.approx(nats / num_tokens, rel=1e-6)
    assert got["perplexity"] == pytest.approx(np.exp(nats / num_tokens), rel=1e-6)
    assert got["bits_per_byte"] == pytest.approx(nats / np.log(2) / num_bytes, rel=1e-6)
    mean_of_means = np.mean([evaluate(params, [b])["loss"] for b in batches])
    assert abs(got["loss"] - mean_of_means) > 1e-2


def test_targets_of_weight_zero_change_nothing(evaluate, params):
    b = batch(3, 13)
    other = b._replace(targets=np.where(b.weights > 0, b.targets, (b.targets + 1) % V))
    assert evaluate(params, [b]) == evaluate(params, [other])


def test_many_small_sums_do_not_drift(evaluate, params):
    """A float32 running total would lose the last digits."""
    one = evaluate(params, [batch(4, B * S)])
    many = evaluate(params, [batch(4, B * S)] * 1001)
    assert many["num_tokens"] == 1001 * one["num_tokens"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert many[name] == pytest.approx(one[name], rel=1e-12)


def test_a_hopeless_model_has_infinite_perplexity_but_a_finite_loss(evaluate, params):
    params = {**params, "unembed": 1e5 * params["unembed"]}
    got = evaluate(params, [batch(5, B * S)])
    assert np.isfinite(got["loss"]) and got["perplexity"] == np.inf


def test_values_are_plain_numbers_for_json(evaluate, params):
    got = evaluate(params, [batch(6, 5)])
    assert {name: type(value) for name, value in got.items()} == {
        "loss": float,
        "perplexity": float,
        "bits_per_byte": float,
        "num_tokens": int,
    }


@pytest.mark.parametrize("batches", [[], [batch(0, 0)]], ids=["no batch", "no weight"])
def test_nothing_to_evaluate_is_an_error(evaluate, params, batches):
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate(params, batches)
