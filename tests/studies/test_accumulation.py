"""A batch in parts: its masks and weights by hand, gradients each way, and made-up verdicts."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from experiments import accumulation as study
from experiments.accumulation import (
    BY_CHANCE,
    BY_KIND,
    IN_PARTS,
    LONG,
    MEAN_OF_MEANS,
    SHORT,
    WHOLE,
    claims,
    objective,
    plot,
    run,
    tables,
)
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, apply_overrides, to_dict
from jaxlm.core.results import Results, Row

PARTS, ROWS, S = 4, 2, 8
TINY = apply_overrides(
    study.Config(),
    {
        "num_parts": PARTS,
        "part_rows": ROWS,
        "short_lengths": (S, 4, 2),
        "trained_length": 2,
        "num_batches": 2,
        "num_seeds": 2,
        "num_layers": 1,
        "d_model": 8,
        "num_heads": 1,
        "context_length": S,
        "num_steps": 4,
        "eval_every": 2,
        "eval_batches": 2,
        "warmup_steps": 1,
        "modules": ("bisect.py", "heapq.py", "keyword.py"),
        "num_validation_modules": 1,
    },
)


@pytest.fixture(scope="module")
def cells():
    return study.cells(run.resolve(TINY))


@pytest.fixture(scope="module", autouse=True)
def _one_program_for_all_lengths():
    """To the programs of gradients the masks, in which cells differ, are inputs."""

    def once(make):
        made = []

        def first(cell):
            made[:] = made or [make(cell)]
            return made[0]

        return first

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_gradients", "make_row_gradients"):
            patch.setattr(run, name, once(getattr(run, name)))
        yield


def cell_of(cells, **fields):
    [cell] = [c for c in cells if all(c.get(name) == v for name, v in fields.items())]
    return cell


def test_the_last_targets_of_a_row_count_and_the_texts_have_half_each(cells):
    cell = cell_of(cells, part="gradients", short=2)
    batch = run.mixed_batches(cell, BY_KIND, 2, [0, 5], 3, 5)
    assert batch.tokens.shape == (2, 2, PARTS * ROWS, S)
    counted = batch.weights.sum(-1)
    np.testing.assert_array_equal(counted[1, 1], [S] * 4 + [2] * 4)
    np.testing.assert_array_equal(batch.weights[0, 0, -1], [0] * 6 + [1] * 2)
    plays, library = run.texts_of(cell)
    texts = [
        bytes(text.train.take(np.arange(text.train.num_tokens)).astype(np.uint8))
        for text in (plays, library)
    ]
    for row, ids in enumerate(batch.tokens[1, 0]):
        assert bytes(ids.astype(np.uint8)) in texts[row >= 4]


def test_by_chance_whole_parts_are_short_whatever_their_text(cells):
    cell = cell_of(cells, part="gradients", short=2)
    batch = run.mixed_batches(cell, BY_CHANCE, 2, [0], 0, 40)
    counted = batch.weights.sum(-1)[0].reshape(40, PARTS, ROWS)
    assert (counted == counted[..., :1]).all()
    np.testing.assert_array_equal(np.sort(counted[..., 0]), [[2, 2, S, S]] * 40)
    shares = (counted[..., 0] == S).mean(0)
    assert ((shares > 0.2) & (shares < 0.8)).all()
    same = run.mixed_batches(cell, BY_KIND, 2, [0], 0, 40)
    np.testing.assert_array_equal(batch.tokens, same.tokens)


def test_weights_of_a_mean_of_means_by_hand():
    """6 and 2 tokens in two parts: 8 / (2 * 6) each and 8 / (2 * 2)."""
    weights = np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]], np.float32)
    got = run.mean_of_means_weights(weights, 2)
    want = weights * np.array([2 / 3, 2 / 3, 2, 2])[:, None]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    several = run.mean_of_means_weights(np.stack([weights, weights[::-1]]), 2)
    np.testing.assert_allclose(several, [want, want[::-1]], rtol=1e-6)


def test_gradients_each_way_against_sums_of_rows(cells):
    cell = cell_of(cells, part="gradients", short=2)
    state = run.initial_state(cell, 0)
    batch = jax.tree.map(lambda x: x[0, 0], run.mixed_batches(cell, BY_KIND, 2, [0], 0, 1))
    gradients = run.make_gradients(cell)
    found = jax.device_get(gradients(state, batch))
    sums = np.asarray(run.make_row_gradients(cell)(state, batch), np.float64)
    counted = np.float64([S] * 4 + [2] * 4)
    size = np.abs(sums).max() / counted.sum()
    whole = sums.sum(0) / counted.sum()
    parts = sums.reshape(PARTS, ROWS, -1).sum(1)
    means = np.mean([part / n for part, n in zip(parts, (16, 16, 4, 4), strict=True)], axis=0)
    np.testing.assert_allclose(found[WHOLE], whole, atol=1e-5 * size)
    np.testing.assert_allclose(found[IN_PARTS], whole, atol=1e-5 * size)
    np.testing.assert_allclose(found[MEAN_OF_MEANS], means, atol=1e-5 * size)
    assert np.linalg.norm(means - whole) > 0.1 * np.linalg.norm(whole)
    # What training with the mean of means takes for it.
    weighted = batch.replace(weights=run.mean_of_means_weights(batch.weights, PARTS))
    np.testing.assert_allclose(gradients(state, weighted)[IN_PARTS], means, atol=1e-5 * size)
    errors = run.float64_errors(sums, counted, PARTS)
    assert errors[IN_PARTS] < 1e-14
    wrong = np.linalg.norm(means - whole) / np.linalg.norm(whole)
    assert errors[MEAN_OF_MEANS] == pytest.approx(wrong)


def test_an_error_that_is_noise_averages_out_and_a_bias_stays():
    right, noise = np.tile([3.0, 4.0], (4, 1)), np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    assert run.averaged(4) == [1, 2, 4]
    assert [run.relative_error(right + noise, right, n) for n in (1, 2, 4)] == [0.2, 0, 0]
    assert [run.relative_error(right + [0, 1], right, n) for n in (1, 2, 4)] == [0.2] * 3


def test_the_rows_of_every_cell(cells):
    gradients = run.run_cell(cell_of(cells, part="gradients", short=S))
    errors = [row for row in gradients if row.metric == "error"]
    assert len(errors) == 2 * 2 * 2 * 2  # seeds, lengths, ways, batches averaged
    assert all(row.value < study.ROUNDING for row in errors)  # even masks: all ways are right
    assert len([row for row in gradients if row.metric == "float64_error"]) == 2 * 2 * 2
    trained = {}
    for way in (IN_PARTS, MEAN_OF_MEANS):
        rows = run.run_cell(cell_of(cells, part="training", way=way, lengths=BY_KIND))
        assert [(row.seed, row.step, row.fields["text"]) for row in rows] == [
            (seed, step, text) for step in (2, 4) for seed in (0, 1) for text in (LONG, SHORT)
        ]
        trained[way] = np.array([row.value for row in rows])
    assert np.abs(trained[IN_PARTS] - trained[MEAN_OF_MEANS]).max() > 1e-3


def made_up(error, loss, rounding=1e-7):
    """Results as of a run: error(lengths, short, batches), loss(way, lengths, text)."""
    cfg = dataclasses.replace(TINY, num_seeds=5)
    rows = []
    for seed in range(5):
        wobble = 1 + 0.01 * math.sin(seed)
        for short in cfg.short_lengths:
            for lengths in (BY_KIND, BY_CHANCE):
                at = {"lengths": lengths, "short": short, "way": IN_PARTS}
                rows.append(Row(at, seed, None, "float64_error", 1e-16, "share of the norm"))
                for batches in (1, 2):
                    for way in (IN_PARTS, MEAN_OF_MEANS):
                        value = rounding
                        if way == MEAN_OF_MEANS and short < S:
                            value = error(lengths, short, batches) * wobble
                        more = {**at, "way": way, "batches": batches}
                        rows.append(Row(more, seed, None, "error", value, "share of the norm"))
        for cell in study.cells(cfg):
            if cell["part"] == "training":
                at = {"way": cell["way"], "lengths": cell["lengths"]}
                for text in (LONG, SHORT):
                    value = loss(*at.values(), text) + 0.3 * wobble
                    for step in (2, 4):
                        fields = {**at, "text": text}
                        rows.append(Row(fields, seed, step, "loss", value, "nats/token"))
    return Results(study="accumulation", config=to_dict(cfg), rows=tuple(rows))


def test_verdicts_when_all_is_as_claimed():
    def error(lengths, short, batches):
        return 1 / short * (0.3 if lengths == BY_CHANCE and batches > 1 else 1)

    def loss(way, lengths, text):
        if way != MEAN_OF_MEANS or lengths == BY_CHANCE:
            return 2.0
        return 2.2 if text == LONG else 1.5

    results = made_up(error, loss)
    assert {claim.verdict for claim in claims(results)} == {SUPPORTED}
    # (8 * 2.2 + 2 * 1.5) / 10 = 2.06, and 0.3 that all have
    assert objective(results, MEAN_OF_MEANS)[0] == pytest.approx(2.36)
    assert objective(results, WHOLE)[0] == pytest.approx(2.3)
    assert all(figure.svg().startswith("<svg") for figure in plot(results))
    [table] = tables(results)
    assert [row[:2] for row in table.rows] == [
        [WHOLE, BY_KIND],
        [IN_PARTS, BY_KIND],
        [MEAN_OF_MEANS, BY_KIND],
        [WHOLE, BY_CHANCE],
        [MEAN_OF_MEANS, BY_CHANCE],
    ]


def test_verdicts_when_the_opposite_holds():
    results = made_up(lambda *_: 0.05, lambda way, *_: 2.0 + 0.1 * (way != WHOLE), rounding=1e-3)
    verdicts = [claim.verdict for claim in claims(results)]
    # The bias claim (0.05 of 0.05 stays) holds, and the loss is higher on the long text and over
    # all tokens; an error that neither grows nor shrinks has no difference to judge.
    assert verdicts == [
        *(NOT_SUPPORTED, SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED),
        *(NOT_SUPPORTED, SUPPORTED, NOT_SUPPORTED, SUPPORTED, NOT_SUPPORTED),
        *(SUPPORTED, NOT_SUPPORTED),
    ]


def test_one_seed_leaves_the_claims_with_intervals_open():
    results = made_up(lambda lengths, short, _: 1 / short, lambda *_: 2.0)
    one = dataclasses.replace(results, rows=tuple(r for r in results.rows if r.seed == 0))
    assert [claim.verdict for claim in claims(one)][3:] == [INCONCLUSIVE] * 9


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_scales_are_configs(scale):
    cfg = apply_overrides(study.Config(scale=scale), study.SCALES.get(scale, {}))
    assert len(study.cells(cfg)) == len(cfg.short_lengths) + 5


@pytest.mark.parametrize(
    "override, message",
    [
        ({"num_parts": 3}, "must be even"),
        ({"num_batches": 12}, "power of two"),
        ({"short_lengths": "32,8,16"}, "falling from context_length"),
        ({"short_lengths": "16,8"}, "falling from context_length"),
        ({"trained_length": 32}, "trained_length=32 must be among"),
        ({"num_steps": 55}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
        ({"num_validation_modules": 40}, "leave some"),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), override)
