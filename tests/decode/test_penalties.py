import jax
import numpy as np
import pytest
from decode_models import PROMPTS, V, bigram, transformer
from oracles import filters_numpy
from scipy import stats

from jaxlm.core.config import ConfigError
from jaxlm.decode import penalties
from jaxlm.decode.filters import SamplingConfig
from jaxlm.decode.generate import generate


def random_rows(seed=0, rows=4, length=6):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (rows, V)).astype(np.float32), rng.integers(V, size=(rows, length))


def test_the_penalty_is_that_of_hugging_face():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, tokens = random_rows()
    seen = penalties.seen_in(tokens, np.full(4, 6), V)
    for penalty in (0.5, 1.0, 1.3, 10.0):
        want = process.RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor(tokens), torch.tensor(logits)
        )
        got = penalties.repetition_penalty(logits, seen, penalty)
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_bias_and_penalty_in_the_order_of_hugging_face():
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, tokens = random_rows(1)
    bias = {2: 4.0, 5: -3.0, 11: 0.5}
    chain = [
        process.SequenceBiasLogitsProcessor([[[id], value] for id, value in bias.items()]),
        process.RepetitionPenaltyLogitsProcessor(1.7),
    ]
    want = torch.tensor(logits)
    for each in chain:
        want = each(torch.tensor(tokens), want)
    setting = SamplingConfig(
        logit_bias=penalties.bias_vector(bias, V), repetition_penalty=np.float32(1.7)
    )
    seen = penalties.seen_in(tokens, np.full(4, 6), V)
    got = penalties.adjust_logits(logits, seen, setting)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_only_the_real_tokens_of_a_row_are_seen():
    tokens = np.array([[3, 1, 4, 0, 0], [5, 5, 7, 8, 0]])
    seen = penalties.seen_in(tokens, np.array([3, 2]), V)
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 3, 4], [5]]
    more = penalties.with_token(seen, np.array([0, 5]))
    assert [np.flatnonzero(row).tolist() for row in more] == [[0, 1, 3, 4], [5]]


@pytest.mark.parametrize("penalty", [0.6, 1.8])
def test_a_text_is_penalised_for_its_prompt_and_for_itself(penalty):
    model, params = transformer("rope")
    bias = {4: 2.0, 9: -np.inf}
    got = generate(
        model,
        params,
        PROMPTS,
        jax.random.key(0),
        num_tokens=12,
        temperature=0.0,
        repetition_penalty=penalty,
        logit_bias=bias,
    ).tokens
    assert not (got == 9).any()
    # Each row again, uncached, in float64 and with sets.
    for prompt, tokens in zip(PROMPTS, got, strict=True):
        text = np.array([*prompt, *tokens])
        rows = np.asarray(jax.jit(model.forward)(params, text[None]))[0].astype(np.float64)
        for t in range(len(prompt), len(text)):
            scores = rows[t - 1].copy()
            for id, value in bias.items():
                scores[id] += value
            for id in set(text[:t]):
                scores[id] = scores[id] * penalty if scores[id] < 0 else scores[id] / penalty
            assert scores.argmax() == text[t]


def test_draws_follow_the_biased_distribution():
    model, params, _ = bigram()
    bias = {0: 1.5, 7: -2.0, 8: -np.inf}
    got = generate(
        model, params, [[2]] * 4000, jax.random.key(0), num_tokens=1, top_k=9, logit_bias=bias
    ).tokens[:, 0]
    logits = np.asarray(params["table"])[2] + [bias.get(id, 0.0) for id in range(V)]
    want = filters_numpy.probabilities(logits, top_k=9)
    counts = np.bincount(got, minlength=V)
    assert not counts[want == 0].any()
    assert stats.chisquare(counts[want > 0], 4000 * want[want > 0]).pvalue > 0.01


@pytest.mark.parametrize(
    "bias, message",
    [
        ({V: 1.0}, "id 13 is outside the vocabulary of 13"),
        ({-1: 1.0}, "id -1"),
        ({3: float("nan")}, "3:nan must be"),
        ({3: float("inf")}, "3:inf must be"),
        (dict.fromkeys(range(V), -np.inf), "forbids every id"),
    ],
)
def test_a_bias_that_cannot_be_is_refused(bias, message):
    with pytest.raises(ConfigError, match=message):
        penalties.bias_vector(bias, V)
