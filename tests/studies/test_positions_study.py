"""Positions: windows that put the same targets at every place, cosines, and made-up verdicts."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import positions as study
from experiments.positions import (
    KINDS,
    LEARNED,
    NONE,
    ROPE,
    SINUSOIDAL,
    at_the_end,
    beyond,
    claims,
    plot,
    run,
    tables,
)
from experiments.texts import plays
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, apply_overrides, diff, to_dict
from jaxlm.core.results import Results, Row
from jaxlm.data.batches import split_from_array

S, SIZE, TIMES, TARGETS = 8, 4, 3, 20
TINY = apply_overrides(
    study.Config(),
    {
        "num_seeds": 2,
        "num_layers": 1,
        "d_model": 8,
        "num_heads": 2,
        "context_length": S,
        "times": TIMES,
        "bin_size": SIZE,
        "batch_size": 4,
        "num_steps": 2,
        "eval_every": 2,
        "eval_tokens": TARGETS,
        "warmup_steps": 1,
    },
)
BINS, BLOCKS = TIMES * S // SIZE, TARGETS // SIZE


def cell_of(kind, cfg=TINY):
    return study.cells(cfg)[KINDS.index(kind)]


def test_the_kinds_differ_in_nothing_but_positions():
    base, *others = (run.run_config(cell_of(kind), 0) for kind in KINDS)
    for other in others:
        assert [line.split(":")[0].split("=")[0].split()[0] for line in diff(base, other)] == [
            "model.positions"
        ]


def test_every_place_has_the_same_targets_after_all_that_comes_before_them():
    split = split_from_array(np.arange(1000))  # an id says where it is
    windows = run.spread_windows(split, cell_of(ROPE))
    assert windows.tokens.shape == (BLOCKS + BINS - 1, BINS * SIZE)
    np.testing.assert_array_equal(windows.targets, windows.tokens + 1)
    # As the loss of a target take its id: at each place their mean is that of the same ids.
    first = (BINS - 1) * SIZE + 1
    want = np.mean(np.arange(first, first + TARGETS))
    got = run.loss_by_bin(windows.targets, cell_of(ROPE))
    np.testing.assert_array_equal(got, [want] * BINS)
    # And as the loss the place in the window: each place has its own.
    place = np.broadcast_to(np.arange(BINS * SIZE), windows.tokens.shape)
    by_place = run.loss_by_bin(place, cell_of(ROPE))
    np.testing.assert_allclose(by_place, np.arange(BINS) * SIZE + (SIZE - 1) / 2)
    short = run.loss_by_bin(windows.targets[:, :S], cell_of(LEARNED))
    np.testing.assert_array_equal(short, [want] * (S // SIZE))


def test_cosines_by_hand():
    table = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(
        run.similarity(table), [[1, 0, half], [0, 1, half], [half, half, 1]], atol=1e-12
    )
    rows = Results(
        study="positions",
        config={},
        rows=tuple(run.similarity_rows({}, 3, table, drawn=True)),
    )
    assert rows.select("similarity").values() == pytest.approx([1, half / 2, half])
    assert rows.select("similarity_spread").values() == pytest.approx([0, half / 2, 0])
    assert len(rows.select("cosine").rows) == 6


@pytest.fixture(scope="module")
def found():
    rows = [row for kind in (LEARNED, SINUSOIDAL) for row in run.run_cell(cell_of(kind))]
    return Results(study="positions", config=to_dict(TINY), rows=tuple(rows))


def test_the_rows_of_cells(found):
    places = {
        kind: [
            (row.fields["windowed"], row.fields["place"])
            for row in found.select("loss_at", positions=kind).rows
            if row.seed == 1
        ]
        for kind in (LEARNED, SINUSOIDAL)
    }
    assert places[LEARNED] == [(False, 0), (False, 4)]  # the table ends
    every = [place * SIZE for place in range(BINS)]
    assert places[SINUSOIDAL] == [(w, place) for w in (False, True) for place in every]
    plain, windowed = (
        found.select("loss_at", positions=SINUSOIDAL, windowed=w).values() for w in (False, True)
    )
    inside = S // SIZE
    for seed in range(2):
        start = seed * BINS
        np.testing.assert_allclose(
            plain[start : start + inside], windowed[start : start + inside], rtol=1e-6
        )
        assert plain[start + inside :] != windowed[start + inside :]
    assert max(found.select("similarity_spread", positions=SINUSOIDAL).values()) < 1e-6
    learned = found.select("similarity", positions=LEARNED).rows
    assert {(row.seed, row.fields["distance"]) for row in learned} == {
        (seed, distance) for seed in (0, 1) for distance in range(S)
    }
    assert {row.step for row in found.select("loss").rows} == {2}


def test_a_place_is_scored_as_the_model_scores_that_text_alone(found, params_of, forward_of):
    """The last place of the learned table, against the plain forward pass in float64 softmax."""
    cell = cell_of(LEARNED)
    cfg = dataclasses.replace(run.run_config(cell, 0).model, vocab_size=78)
    params, split = params_of(cfg), plays().validation
    got = run.make_losses(cfg, cell)(params, run.spread_windows(split, cell))
    first = (BINS - 1) * SIZE
    losses = []
    for block in range(BLOCKS):
        start = first + block * SIZE - SIZE  # so that its targets are at places 4 to 7
        ids = split.take(np.arange(start, start + S + 1))
        logits = np.float64(forward_of(cfg)(params, ids[None, :S])[0, SIZE:])
        nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(SIZE), ids[SIZE + 1 :]]
        losses.append(nll.mean())
    assert got.shape == (2,)
    assert got[1] == pytest.approx(np.mean(losses), rel=1e-5)


def made_up(final, at, similarity=lambda kind, distance: 1 - 0.1 * distance, spread=0.0):
    """Results as of a run: final(kind), at(kind, times, windowed) of the training length."""
    cfg = dataclasses.replace(TINY, num_seeds=5)
    rows = []
    for kind in KINDS:
        here = {"positions": kind}
        rows.append(Row(here, None, None, "unigram_loss", 3.3, "nats/token"))
        for seed in range(5):
            wobble = 0.01 * math.sin(seed)
            rows.append(Row(here, seed, 2, "loss", final(kind) + wobble, "nats/token"))
            for windowed in (False, True)[: 1 if kind == LEARNED else 2]:
                for place in range(S // SIZE if kind == LEARNED else BINS):
                    value = at(kind, place * SIZE / S, windowed) + wobble * (1 + place)
                    fields = {**here, "windowed": windowed, "place": place * SIZE}
                    rows.append(Row(fields, seed, None, "loss_at", value, "nats/token"))
    for kind, seeds in ((SINUSOIDAL, [None]), (LEARNED, range(5))):
        for seed in seeds:
            for distance in range(S):
                fields = {"positions": kind, "distance": distance}
                value = similarity(kind, distance) + 0.001 * (seed or 0) * distance
                rows.append(Row(fields, seed, None, "similarity", value, "1"))
                rows.append(Row(fields, seed, None, "similarity_spread", spread, "1"))
            for a in range(S):
                for b in range(a + 1):
                    fields = {"positions": kind, "a": a, "b": b}
                    if not seed:
                        rows.append(Row(fields, seed, None, "cosine", 0.5, "1"))
    return Results(study="positions", config=to_dict(cfg), rows=tuple(rows))


def test_verdicts_when_all_is_as_claimed():
    def at(kind, times, windowed):
        if kind == NONE or (kind == ROPE and windowed):
            return 2.0
        return 2.0 if times < 1 else 2.5

    finals = {ROPE: 1.8, LEARNED: 1.9, SINUSOIDAL: 1.9, NONE: 2.0}
    results = made_up(finals.get, at)
    assert [claim.verdict for claim in claims(results)] == [SUPPORTED] * 12
    # Of places 0.5, and of 1 to 2 times; a seed adds 0.01 sin(seed) for each place and one.
    assert at_the_end(results, ROPE)[1] == pytest.approx(2 + 2 * 0.01 * math.sin(1))
    assert beyond(results, ROPE, 1, 2)[1] == pytest.approx(2.5 + 3.5 * 0.01 * math.sin(1))
    assert all(figure.svg().startswith("<svg") for figure in plot(results))
    [table] = tables(results)
    assert [row[:2] for row in table.rows] == [
        ["RoPE", ""],
        ["RoPE", "yes"],
        ["learned", ""],
        ["sinusoidal", ""],
        ["sinusoidal", "yes"],
        ["none", ""],
        ["none", "yes"],
    ]
    assert table.rows[2][-2:] == ["ends", "ends"]


def test_verdicts_when_the_opposite_holds():
    def at(kind, times, windowed):
        bad = kind == NONE or (kind == ROPE and windowed)
        return 2.5 if bad and times >= 1 else 2.0

    finals = {ROPE: 2.2, LEARNED: 2.1, SINUSOIDAL: 2.1, NONE: 2.0}
    results = made_up(finals.get, at, lambda kind, distance: 0.1 * distance, spread=1e-3)
    assert [claim.verdict for claim in claims(results)] == [NOT_SUPPORTED] * 12
    one = tuple(row for row in results.rows if row.seed in (0, None))
    verdicts = [claim.verdict for claim in claims(dataclasses.replace(results, rows=one))]
    assert verdicts == [*[INCONCLUSIVE] * 10, NOT_SUPPORTED, INCONCLUSIVE]


@pytest.mark.parametrize(
    "override, message",
    [
        ({"times": 2}, "times=2 must be at least 3"),
        ({"bin_size": 7}, "context_length=64 must be a multiple of bin_size=7"),
        ({"num_steps": 55}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), override)


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_scales_are_configs(scale):
    cfg = apply_overrides(study.Config(scale=scale), study.SCALES.get(scale, {}))
    assert [cell["positions"] for cell in study.cells(cfg)] == list(KINDS)
