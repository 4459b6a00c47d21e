import itertools

import jax
import numpy as np
import pytest
from oracles import filters_numpy
from scipy import stats

from jaxlm.core.config import ConfigError
from jaxlm.decode import filters
from jaxlm.decode.filters import SamplingConfig

V = 37
TEMPERATURES, TOP_KS, TOP_PS, MIN_PS = (
    (0.0, 0.7, 1.3),
    (1, 4, 10**12),
    (0.3, 0.95, 1.0),
    (0.0, 0.08),
)


num_traces = 0


@jax.jit
def probabilities(logits, sampling):
    global num_traces
    num_traces += 1
    return jax.nn.softmax(filters.filter_logits(logits, sampling))


sample = jax.jit(filters.sample_token)


def random_logits(seed, rows=5, sigma=3.0):
    return np.random.default_rng(seed).normal(0, sigma, (rows, V)).astype(np.float32)


def all_filters(temperature=1.0, top_k=V, top_p=1.0, min_p=0.0):
    """Every filter is in the program, by default at the value that changes nothing."""
    setting = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    return jax.tree.map(np.float32, setting)  # 10**12 fits no int32


def test_all_settings_match_the_float64_oracle_with_one_program():
    logits, before = random_logits(0), num_traces
    for setting in itertools.product(TEMPERATURES, TOP_KS, TOP_PS, MIN_PS):
        got = probabilities(logits, all_filters(*setting))
        want = [filters_numpy.probabilities(row, *setting) for row in logits]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7, err_msg=str(setting))
    assert num_traces <= before + 1


def test_a_filter_that_is_off_leaves_the_distribution_alone():
    logits = random_logits(1)
    want = [filters_numpy.probabilities(row, 0.5) for row in logits]
    got = probabilities(logits, SamplingConfig(temperature=0.5))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_array_equal(got, probabilities(logits, all_filters(0.5)))


@pytest.mark.parametrize(
    "ours, warper, values",
    [
        (filters.temperature, "TemperatureLogitsWarper", (0.3, 1.0, 2.5)),
        (filters.top_k, "TopKLogitsWarper", (1, 5, V, V + 1)),
        (filters.top_p, "TopPLogitsWarper", (0.01, 0.5, 0.9, 0.999, 1.0)),
        (filters.min_p, "MinPLogitsWarper", (0.001, 0.05, 0.5, 1.0)),
    ],
)
def test_each_filter_matches_hugging_face(ours, warper, values):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ours = random_logits(2), jax.jit(ours)
    for value in values:
        want = getattr(process, warper)(value)(None, torch.tensor(logits))
        got = jax.nn.softmax(ours(logits, value))
        np.testing.assert_allclose(got, want.softmax(-1).numpy(), rtol=1e-4, err_msg=str(value))


def test_ties_go_to_the_lowest_ids():
    logits = np.full((5, V), -1e9, np.float32)
    logits[0, :6] = [0.0, 2.0, -0.0, 2.0, 2.0, 0.0]
    logits[1, :4] = 0.0

    def kept(row, **setting):
        return np.flatnonzero(probabilities(logits, all_filters(**setting))[row]).tolist()

    assert kept(0, temperature=0.0) == [1]
    assert [kept(0, top_k=k) for k in (1, 2, 4)] == [[1], [1, 3], [0, 1, 3, 4]]
    halves = [kept(1, top_p=p) for p in (0.25, 0.26, 0.5, 0.8)]
    assert halves == [[0], [0, 1], [0, 1], [0, 1, 2, 3]]
    assert kept(1, min_p=1.0) == [0, 1, 2, 3]


def test_huge_logits_and_tiny_temperatures_stay_finite():
    logits = np.full((5, V), -1e30, np.float32)
    logits[:, [1, 3]] = 3e30
    for t in (1e-42, 1e-37, 1e-3, 1.0):
        got = probabilities(logits, all_filters(temperature=t, top_p=0.9))
        # Below the smallest normal float32 a temperature counts as 0.
        np.testing.assert_array_equal(got[0, [1, 3]], [1, 0] if t < 1e-38 else [0.5, 0.5])


NUM_DRAWS = 10_000


def test_samples_follow_the_filtered_distribution():
    setting = {"temperature": 1.4, "top_k": 12, "top_p": 0.8, "min_p": 0.2}
    logits = random_logits(3, rows=1, sigma=0.8)
    want = filters_numpy.probabilities(logits[0], **setting)
    assert 4 < np.count_nonzero(want) < 12
    many = np.broadcast_to(logits, (NUM_DRAWS, V))
    counts = np.bincount(sample(many, jax.random.key(0), all_filters(**setting)), minlength=V)
    assert not counts[want == 0].any()
    assert stats.chisquare(counts[want > 0], NUM_DRAWS * want[want > 0]).pvalue > 0.01


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"top_k": 1}], ids=str)
def test_temperature_zero_and_top_k_one_are_the_argmax(setting):
    logits = np.round(random_logits(4, rows=NUM_DRAWS))  # rounded, so that rows have ties
    assert any((row == row.max()).sum() > 1 for row in logits[:50])
    got = sample(logits, jax.random.key(1), all_filters(**setting))
    np.testing.assert_array_equal(got, logits.argmax(-1))


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field}={value} must be"):
        SamplingConfig(**{field: value})
