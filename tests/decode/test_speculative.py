import functools
import itertools

import jax
import numpy as np
import pytest
from decode_models import PROMPTS, V, bigram, transformer
from oracles import filters_numpy
from scipy import stats

from jaxlm.core.config import ConfigError
from jaxlm.decode import speculative
from jaxlm.decode.generate import generate
from jaxlm.decode.speculative import speculate

FILTERS = [{}, {"temperature": 0.7, "top_k": 2}, {"temperature": 1.6, "top_p": 0.8}]


def tables(vocab_size, **setting):
    """The filtered rows of two bigram models, float64: of the target and of the draft."""
    pair = bigram(vocab_size, seed=1), bigram(vocab_size, seed=2)
    return [
        np.array([filters_numpy.probabilities(row, **setting) for row in params["table"]])
        for _, params, _ in pair
    ]


def exact_distribution(p, q, first, num_tokens, num_drafted):
    """{text: probability} of the algorithm, summed over its drafts, verdicts and last tokens."""
    found = {}

    def go_on(text, weight):
        if weight == 0:
            return
        if len(text) > num_tokens:
            text = text[1 : num_tokens + 1]
            found[text] = found.get(text, 0.0) + weight
            return
        for drafts in itertools.product(range(len(p)), repeat=num_drafted):
            states = [text[-1], *drafts]
            drawn = np.prod([q[a, b] for a, b in itertools.pairwise(states)])
            if drawn == 0:
                continue
            kept = speculative.acceptance(p[states[:-1]], q[states[:-1]], np.array(drafts))
            kept = np.asarray(kept, np.float64)
            for count in range(num_drafted + 1):
                chance = drawn * np.prod(kept[:count]) * np.prod(1 - kept[count : count + 1])
                at = states[count]
                after = p[at]
                if count < num_drafted:
                    after = np.asarray(speculative.residual(p[at], q[at]), np.float64)
                for token, share in enumerate(after):
                    go_on((*text, *drafts[:count], token), weight * chance * share)

    go_on((first,), 1.0)
    return found


@pytest.mark.parametrize("setting", FILTERS, ids=str)
@pytest.mark.parametrize("num_drafted", [1, 2])
def test_the_sum_over_all_that_can_happen_is_the_targets_distribution(setting, num_drafted):
    p, q = tables(3, **setting)
    assert np.abs(p - q).max() > 0.1
    found = exact_distribution(p, q, 1, num_tokens=3, num_drafted=num_drafted)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    for text in itertools.product(range(3), repeat=3):
        want = np.prod([p[a, b] for a, b in itertools.pairwise((1, *text))])
        assert found.get(text, 0.0) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_samples_follow_the_targets_distribution(setting):
    vocab, n = 4, 6000
    (target, params, _), (draft, draft_params, _) = bigram(vocab, 1), bigram(vocab, 2)
    got = speculate(
        target,
        params,
        draft,
        draft_params,
        [[3]] * n,
        jax.random.key(0),
        num_tokens=4,
        num_drafted=2,
        **setting,
    )
    assert 0.2 < got.acceptance_rate < 0.95
    p, _ = tables(vocab, **setting)
    texts = list(itertools.product(range(vocab), repeat=4))
    want = np.array([np.prod([p[a, b] for a, b in itertools.pairwise((3, *t))]) for t in texts])
    counts = np.bincount(got.tokens @ vocab ** np.arange(4)[::-1], minlength=len(texts))
    assert not counts[want == 0].any()
    often = n * want > 5
    observed = [*counts[often], counts[~often].sum()]
    expected = [*n * want[often], n * want[~often].sum()]
    observed, expected = (np.array(x)[np.array(expected) > 0] for x in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 0.01


@pytest.mark.parametrize(
    ("positions", "num_drafted"),
    [
        ("rope", 1),
        ("rope", 6),
        ("sinusoidal", 3),
        pytest.param("rope", 3, marks=pytest.mark.slow),
        pytest.param("sinusoidal", 1, marks=pytest.mark.slow),
        pytest.param("sinusoidal", 6, marks=pytest.mark.slow),
    ],
)
def test_greedy_text_is_that_of_plain_decoding(positions, num_drafted):
    model, params = transformer(positions)
    draft, draft_params = transformer(positions, num_layers=1)
    options = {"num_tokens": 15, "temperature": 0.0, "stop_ids": [2]}
    key = jax.random.key(0)
    want = generate(model, params, PROMPTS, key, **options)
    options["num_drafted"] = num_drafted
    got = speculate(model, params, draft, draft_params, PROMPTS, key, **options)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.lengths, want.lengths)
    assert len(set(got.calls.tolist())) > 1  # the rows went on at different rates


def test_a_perfect_draft_is_always_kept():
    model, params = transformer("rope")
    run = functools.partial(speculate, model, params, model, params, PROMPTS)
    got = run(jax.random.key(0), num_tokens=15, num_drafted=4, temperature=0.0)
    assert got.acceptance_rate == 1
    np.testing.assert_array_equal(got.calls, 3)
    assert got.tokens_per_call == 5


def test_penalty_and_bias_apply_to_every_drafted_token():
    model, params = transformer("rope")
    draft, draft_params = transformer("rope", num_layers=1)
    options = {"num_tokens": 14, "temperature": 0.0, "repetition_penalty": 1.8}
    options["logit_bias"] = {4: 2.0, 9: -np.inf}
    key = jax.random.key(0)
    want = generate(model, params, PROMPTS, key, **options)
    got = speculate(model, params, draft, draft_params, PROMPTS, key, num_drafted=3, **options)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    assert 0 < got.acceptance_rate < 1


@pytest.mark.parametrize("num_drafted", [1, 3])
def test_the_token_after_the_last_draft_is_penalised_for_it(num_drafted):
    model, _, _ = bigram()
    eye = np.eye(V, dtype=np.float32)
    params = {"table": 3 * eye + 2 * np.roll(eye, 1, axis=1)}  # again itself, else the next id
    run = functools.partial(speculate, model, params, model, params, [[0]], jax.random.key(0))
    got = run(num_tokens=9, num_drafted=num_drafted, temperature=0.0, repetition_penalty=1.8)
    np.testing.assert_array_equal(got.tokens[0], np.arange(1, 10))
    assert got.acceptance_rate == 1


def test_as_many_drafts_are_kept_as_the_two_distributions_have_in_common():
    """With the same distributions at every place, Leviathan et al.'s theorem 3.8 is exact."""
    rows = np.random.default_rng(0).normal(0, 1, (2, 1, 5)).astype(np.float32)
    p, q = np.exp(rows[:, 0]) / np.exp(rows[:, 0]).sum(-1, keepdims=True)
    alpha = np.minimum(p, q).sum()
    model, _, _ = bigram(5)
    tables = [{"table": np.repeat(row, 5, axis=0)} for row in rows]
    got = speculate(
        model, tables[0], model, tables[1], [[0]] * 500, jax.random.key(0), num_tokens=60,
        num_drafted=3,
    )  # fmt: skip
    assert got.acceptance_rate == pytest.approx(np.sum(alpha ** np.arange(1, 4)) / 3, rel=0.02)


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_row_does_not_depend_on_the_rows_beside_it(temperature):
    model, params = transformer("rope")
    draft, draft_params = transformer("rope", num_layers=1)
    run = functools.partial(
        speculate, model, params, draft, draft_params, num_tokens=9, temperature=temperature
    )
    whole = run(PROMPTS, jax.random.key(1))
    np.testing.assert_array_equal(run([PROMPTS[0]], jax.random.key(1)).tokens, whole.tokens[:1])
    again = run([[8], PROMPTS[1], [7] * 5], jax.random.key(1))
    np.testing.assert_array_equal(again.tokens[1], whole.tokens[1])
    assert again.calls[1] == whole.calls[1]


def test_the_position_table_can_be_filled():
    model, params = transformer("learned")
    draft, draft_params = transformer("learned", num_layers=1)
    options = {"num_tokens": 18, "temperature": 0.0, "max_length": 24}
    want = generate(model, params, PROMPTS, jax.random.key(0), **options)
    got = speculate(model, params, draft, draft_params, PROMPTS, jax.random.key(0), **options)
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_one_program_serves_all_lengths_and_numbers():
    model, params, traces = bigram(6)
    run = functools.partial(speculate, model, params, model, params)
    run([[1]], jax.random.key(0), num_tokens=7)
    before = len(traces)
    run([[1, 2, 3]], jax.random.key(1), num_tokens=5, temperature=0.3, stop_ids=[4])
    assert len(traces) == before


@pytest.mark.parametrize(
    "draft, options, message",
    [
        (bigram(V)[0], {"num_drafted": 0}, "num_drafted=0 must be in 1..64"),
        (bigram(6)[0], {}, "draft has a vocabulary of 6, the model one of 13"),
        (bigram(V)[0]._replace(take_back=None), {}, "the draft cannot take back"),
        (bigram(V)[0], {"top_p": 2.0}, "top_p=2.0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(draft, options, message):
    model, params, _ = bigram()
    with pytest.raises(ConfigError, match=message):
        speculate(model, params, draft, params, [[1]], jax.random.key(0), num_tokens=3, **options)
