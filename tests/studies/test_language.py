"""Training on a text in a population: against losses worked out in numpy."""

import collections
import dataclasses
import math

import numpy as np
import pytest
from compiling import quick_jit

from experiments.language import unigram_loss, validation_losses
from experiments.texts import as_text
from jaxlm.core.config import apply_overrides
from jaxlm.models import transformer
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values, make_program

SENTENCES = "the cat sat on the mat. a dog ate the cat. " * 60
CONTEXT = 8


@pytest.fixture(scope="module")
def text():
    return as_text(SENTENCES, "characters", 0.2, "none")


@pytest.fixture(scope="module")
def config(text):
    return apply_overrides(
        RunConfig(),
        {
            "model.vocab_size": text.tokenizer.vocab_size,
            "model.context_length": CONTEXT,
            "model.num_layers": 1,
            "model.d_model": 8,
            "model.num_heads": 1,
            "data.batch_size": 2,
            "optim.schedule": "constant",
            "optim.peak_lr": 1e-2,
            "train.num_steps": 6,
            "train.steps_per_call": 3,
            "train.eval_every": 3,
            "train.save_every": 6,
        },
    )


def with_rate(config, peak_lr, seed=0):
    optim = dataclasses.replace(config.optim, peak_lr=peak_lr)
    return dataclasses.replace(config, optim=optim, seed=seed)


def validation_windows(text, num):
    """Windows one after the other, each a token behind the next: [num, CONTEXT + 1]."""
    ids = text.validation.take(np.arange(text.validation.num_tokens))
    return np.stack([ids[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in range(num)])


def test_losses_are_those_of_the_first_validation_windows(text, config):
    lanes = [with_rate(config, 1e-20, 3), with_rate(config, 1e-2, 3), with_rate(config, 1e-2, 4)]
    losses = validation_losses(text, lanes, 256)
    assert list(losses) == [3, 6]
    assert all(values.shape == (3,) for values in losses.values())

    # A rate of next to nothing leaves the initial weights: their loss, by hand.
    program = make_program(config, text.tokenizer.token_bytes)
    hypers = {name: np.float32(value) for name, value in hyper_values(lanes[0]).items()}
    params = quick_jit(program.init)(3, hypers).params
    windows = validation_windows(text, 32)
    forward = quick_jit(lambda p, tokens: transformer.forward(p, tokens, config.model))
    logits = np.asarray(forward(params, windows[:, :-1]), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logs, windows[:, 1:, None], -1).mean()
    np.testing.assert_allclose([losses[3][0], losses[6][0]], expected, rtol=1e-5)

    # The others learn, each with its own seed.
    assert losses[6][1] < losses[3][1] < expected
    assert losses[6][1] != losses[6][2]


def test_runs_of_two_structures_are_refused(text, config):
    model = dataclasses.replace(config.model, d_model=16)
    with pytest.raises(ValueError, match="2 configs of 2 structures"):
        validation_losses(text, [config, dataclasses.replace(config, model=model)], 64)


def test_the_unigram_loss_by_counting(text):
    cut = int(len(SENTENCES) * 0.8)
    counts = collections.Counter(SENTENCES[:cut])
    total = cut + text.tokenizer.vocab_size
    scored = SENTENCES[cut + 1 : cut + 1 + 32 * CONTEXT]
    expected = -sum(math.log((counts[c] + 1) / total) for c in scored) / len(scored)
    assert unigram_loss(text, CONTEXT, 256) == pytest.approx(expected, rel=1e-6)
