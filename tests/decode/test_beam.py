import functools

import jax
import numpy as np
import pytest
from decode_models import PROMPTS, V, bigram, transformer
from oracles import beam_python
from scipy.special import log_softmax

from jaxlm.core.config import ConfigError
from jaxlm.decode.beam import beam_search
from jaxlm.decode.generate import generate


def log_probs_of(model, params, prompt, length=24):
    """text -> the model's log-probabilities of the next token, uncached and in float64."""
    forward = jax.jit(model.forward)

    @functools.cache
    def log_probs(text):
        text = [*prompt, *text]
        logits = forward(params, np.array([text + [0] * (length - len(text))]))
        return log_softmax(np.asarray(logits)[0, len(text) - 1].astype(np.float64)).tolist()

    return log_probs


def texts_of(found, b, stop_ids=()):
    """[(score, text with its stop token)] of row b."""
    pairs = []
    for tokens, length, score in zip(*(x[b] for x in found), strict=True):
        text = tuple(tokens[tokens >= 0].tolist())
        assert length == len(text) - (text != () and text[-1] in stop_ids)
        pairs.append((score, text))
    return pairs


def assert_same(got, want):
    assert [text for _, text in got] == [text for _, text in want]
    np.testing.assert_allclose([s for s, _ in got], [s for s, _ in want], rtol=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_beam_of_all_texts_finds_the_best_there_are(length_penalty):
    model, params = transformer("rope", vocab_size=4)
    stop_ids = (2,)
    found = beam_search(
        model,
        params,
        [[3, 1, 3], [0]],
        num_tokens=4,
        width=128,  # 121 texts, and no more than 108 continuations at a time
        length_penalty=length_penalty,
        stop_ids=stop_ids,
    )
    for b, prompt in enumerate(([3, 1, 3], [0])):
        log_probs = log_probs_of(model, params, prompt, length=8)
        want = beam_python.every_text(log_probs, 4, 4, stop_ids, length_penalty)
        got = texts_of(found, b, stop_ids)
        assert len(want) == 121 and got[0][1] == want[0][1]
        # Every text is there with its score; float32 may order two that are close otherwise.
        scores = {text: score for score, text in got[:121]}
        assert len(scores) == 121
        np.testing.assert_allclose([scores[t] for _, t in want], [s for s, _ in want], rtol=1e-4)
        assert (np.diff(found.scores[b, :121]) <= 0).all()
        assert (found.scores[b, 121:] == -np.inf).all() and (found.tokens[b, 121:] == -1).all()


@pytest.mark.parametrize("width", [1, 3, pytest.param(2, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("stop_ids", [(), (2, 7)], ids=["no end", "ends"])
def test_a_narrow_beam_is_that_of_plain_python(width, stop_ids):
    model, params = transformer("rope")
    found = beam_search(
        model,
        params,
        PROMPTS,
        num_tokens=9,
        width=width,
        length_penalty=0.7,
        stop_ids=stop_ids,
    )
    for b, prompt in enumerate(PROMPTS):
        log_probs = log_probs_of(model, params, prompt)
        want = beam_python.beam_search(log_probs, width, 9, stop_ids, 0.7)
        assert_same(texts_of(found, b, stop_ids), want)


@pytest.mark.parametrize("positions", ["rope", "sinusoidal"])
def test_width_one_is_greedy(positions):
    model, params = transformer(positions)
    options = {"num_tokens": 12, "stop_ids": [2]}
    greedy = generate(model, params, PROMPTS, jax.random.key(0), temperature=0.0, **options)
    found = beam_search(model, params, PROMPTS, width=1, **options)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], greedy.lengths)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    model, params = transformer("rope")
    run = functools.partial(beam_search, model, params, num_tokens=8, width=3)
    whole = run(PROMPTS)
    alone = run([PROMPTS[0]])
    np.testing.assert_array_equal(alone.tokens[0], whole.tokens[0])
    np.testing.assert_allclose(alone.scores[0], whole.scores[0], rtol=1e-5)


def test_one_program_serves_all_lengths_and_penalties():
    model, params, traces = bigram(vocab_size=6)
    run = functools.partial(beam_search, model, params, width=3)
    run([[1]], num_tokens=10)
    before = len(traces)
    run([[2, 3, 4]], num_tokens=7, length_penalty=0.3, stop_ids=[5])
    assert len(traces) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"width": 2, "length_penalty": float("nan")}, "length_penalty=nan"),
        ({"width": 2, "stop_ids": [V]}, "stop_ids: id 13"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    model, params, _ = bigram()
    with pytest.raises(ConfigError, match=message):
        beam_search(model, params, [[1]], num_tokens=3, **options)
