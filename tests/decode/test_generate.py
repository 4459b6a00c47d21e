import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_models import KINDS, PROMPTS, V, bigram, transformer
from oracles import filters_numpy
from scipy import stats

from jaxlm.core.config import ConfigError
from jaxlm.decode.generate import generate


@pytest.mark.parametrize("positions", KINDS)
def test_greedy_cached_decoding_is_the_argmax_of_the_uncached_model(positions):
    model, params = transformer(positions)
    n, seed = 16, jax.random.key(0)
    got = generate(model, params, PROMPTS, seed, num_tokens=n, temperature=0.0)
    # Padded on the right: causal, so no logit that is looked at can see the padding.
    rows = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, got.tokens, strict=True)]
    longest = max(map(len, rows))
    padded = np.array([row + [0] * (longest - len(row)) for row in rows])
    logits = jax.jit(model.forward)(params, padded)
    for prompt, row, row_logits in zip(PROMPTS, rows, logits, strict=True):
        best = np.argmax(row_logits, axis=-1)
        np.testing.assert_array_equal(row[len(prompt) :], best[len(prompt) - 1 : len(row) - 1])
    np.testing.assert_array_equal(got.lengths, n)
    assert len(np.unique(got.tokens)) > 4


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_row_does_not_depend_on_the_rows_beside_it(temperature):
    model, params = transformer("rope")
    run = functools.partial(
        generate, model, params, key=jax.random.key(1), num_tokens=10, temperature=temperature
    )
    first, second, third = run(PROMPTS).tokens
    np.testing.assert_array_equal(run([PROMPTS[0]]).tokens, [first])
    np.testing.assert_array_equal(run([[8], PROMPTS[1], [7] * 5]).tokens[1], second)
    np.testing.assert_array_equal(run([[2] * 9, [8], PROMPTS[2]]).tokens[2], third)


def test_rows_with_one_prompt_draw_differently_and_keys_matter():
    model, params = transformer("rope")
    a, b = (
        generate(model, params, [PROMPTS[0]] * 3, jax.random.key(s), num_tokens=10).tokens
        for s in (1, 2)
    )
    assert len({tuple(row) for row in (*a, *b)}) == 6


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_text_continues_alike_wherever_its_prompt_ends(temperature):
    model, params = transformer("rope")
    run = functools.partial(generate, model, params, key=jax.random.key(3), temperature=temperature)
    whole = run(PROMPTS, num_tokens=10).tokens
    longer = [[*prompt, *row[:4]] for prompt, row in zip(PROMPTS, whole, strict=True)]
    np.testing.assert_array_equal(run(longer, num_tokens=6).tokens, whole[:, 4:])


def test_tokens_follow_the_models_probabilities():
    model, params, _ = bigram()
    setting = {"temperature": 1.3, "top_k": 8, "top_p": 0.9, "min_p": 0.05}
    got = generate(model, params, [[2]] * 64, jax.random.key(0), num_tokens=300, **setting)
    previous = np.concatenate([np.full((64, 1), 2), got.tokens[:, :-1]], axis=1)
    pairs = np.zeros((V, V))
    np.add.at(pairs, (previous.ravel(), got.tokens.ravel()), 1)
    table = np.asarray(params["table"])
    want = np.array([filters_numpy.probabilities(row, **setting) for row in table])
    assert not pairs[want == 0].any()
    expected = want * pairs.sum(axis=1, keepdims=True)
    visited = expected > 5
    observed, expected = pairs[visited], expected[visited]
    statistic = np.sum((observed - expected) ** 2 / expected)
    freedom = visited.sum() - visited.any(axis=1).sum()
    assert freedom > 30
    assert stats.chi2.sf(statistic, freedom) > 0.01


def test_one_program_serves_all_lengths_in_a_bucket_and_all_numbers():
    model, params, traces = bigram()
    run = functools.partial(generate, model)
    count = []
    for length, num_tokens, t, k, stop_ids, scale in (
        (1, 40, 1, 3, (), 1.0),
        (9, 50, 0.5, 4, [1], 2.0),
        (16, 49, np.float64(2.0), np.int64(5), (2, 3), 3.0),
        (2, 33, 0, 10**12, [], 4.0),
    ):
        scaled = jax.tree.map(lambda x: scale * x, params)  # noqa: B023
        prompts = [[4] * length, [5]]
        run(
            scaled,
            prompts,
            jax.random.key(length),
            num_tokens=num_tokens,
            temperature=t,
            top_k=k,
            stop_ids=stop_ids,
        )
        count.append(len(traces))
    assert count[0] == count[-1] > 0
    run(params, [[4] * 17, [5]], jax.random.key(0), num_tokens=40, top_k=3)
    assert len(traces) > count[-1]


def test_stop_tokens_end_their_row_and_the_loop():
    model, _, _ = bigram()
    successor = {"table": 50.0 * jnp.roll(jnp.eye(V), 1, axis=1)}  # token i is followed by i + 1
    run = functools.partial(generate, model, successor, key=jax.random.key(0))
    got = run([[2], [7], [1, 12]], num_tokens=6, stop_ids=[5, 11])
    np.testing.assert_array_equal(
        got.tokens,
        [
            [3, 4, 5, -1, -1, -1],
            [8, 9, 10, 11, -1, -1],
            [0, 1, 2, 3, 4, 5],
        ],
    )
    np.testing.assert_array_equal(got.lengths, [2, 3, 5])
    got = run([[2], [7], [4]], num_tokens=5, stop_ids=[0])
    np.testing.assert_array_equal(got.tokens[1], [8, 9, 10, 11, 12])
    np.testing.assert_array_equal(got.lengths, [5, 5, 5])


def test_the_loop_ends_as_soon_as_every_row_is_done():
    model, params, _ = bigram()
    steps = []

    def counted(*args, **lengths):
        jax.debug.callback(lambda: steps.append(1))
        return model.extend(*args, **lengths)

    counting = model._replace(extend=counted)
    got = generate(counting, params, [[1]], jax.random.key(0), num_tokens=1000, stop_ids=range(V))
    jax.effects_barrier()
    np.testing.assert_array_equal(got.lengths, [0])
    assert len(steps) == 2  # prefill and one step


def test_the_position_table_can_be_filled_and_no_more():
    model, params = transformer("learned")
    run = functools.partial(generate, model, max_length=24)
    key = jax.random.key(0)
    tokens = run(params, PROMPTS, key, num_tokens=16, temperature=0.0).tokens
    np.testing.assert_array_equal(
        run(params, PROMPTS, key, num_tokens=18, temperature=0.0).tokens[:, :16], tokens
    )
    with pytest.raises(ConfigError, match="7 tokens.*num_tokens=19.*25 positions.*has 24"):
        run(params, PROMPTS, key, num_tokens=19)


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "prompts: expected at least one"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [4, V]], {}, "prompts: id 13 is outside the vocabulary of 13"),
        ([[-1]], {}, "prompts: id -1 is outside"),
        ([[1]], {"stop_ids": [99]}, "stop_ids: id 99 is outside"),
        ([[1]], {"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0 must be above 0"),
    ],
)
def test_bad_input_is_refused_by_name(prompts, options, message):
    model, params, _ = bigram()
    with pytest.raises(ConfigError, match=message):
        generate(model, params, prompts, jax.random.key(0), **{"num_tokens": 3, **options})
