"""initialisation: names as documents, the starts' sizes, symmetry, rows of tiny cells, verdicts."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from experiments import initialisation
from experiments.initialisation import (
    GAINS,
    NORMED,
    QUANTILES,
    STARTS,
    SYMMETRY,
    Config,
    cells,
    claims,
)
from experiments.initialisation import run as study
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, to_dict
from jaxlm.core.params import init_params
from jaxlm.core.results import Results, Row
from jaxlm.models import kinds

TINY = Config(
    d_model=8, num_seeds=2, rows=2, row_length=16, num_steps=4, eval_every=2, depth=3, d_deep=8
)
NAMES = ["anna", "bob", "carla", "dan", "eva", "finn", "gus", "hanna", "ina", "jo"] * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("names") / "names.txt"
    file.write_text("\n".join(NAMES) + "\n")
    return str(file)


def test_the_bundled_names_are_what_the_study_says():
    names = study.read_names(None).split("\n")
    assert names[-1] == "" and len(names) - 1 == 2064
    assert names[:-1] == sorted(set(names[:-1]))
    assert all(name.isascii() and name.islower() and name.isalpha() for name in names[:-1])
    parts = study.open_names(None)
    assert [len(part) for part in parts[:3]] == [1651, 206, 207] and parts.vocab_size == 27


def test_rows_hold_whole_names_and_every_character_is_predicted_once(path):
    names = study.open_names(path).train
    batch = study.pack(names, 16)
    assert np.sum(batch.weights) == sum(map(len, names))
    end, seen = names[0][0], []
    for row in range(len(batch.tokens)):
        for number in range(1, batch.segment_ids[row].max() + 1):
            here = batch.segment_ids[row] == number
            ids, targets = batch.tokens[row, here], batch.targets[row, here]
            assert ids[0] == end and (targets == [*ids[1:], end]).all()
            seen.append(ids.tolist())
    assert seen == [name.tolist() for name in names]
    assert (batch.segment_ids == 0).sum() == (batch.weights == 0).sum()


def test_an_epoch_has_its_own_order_and_a_batch_is_a_function_of_seed_and_step(path):
    [cell, *_] = cells(dataclasses.replace(TINY, path=path))
    batches, again = study.Batches(cell), study.Batches(cell)
    for step in (0, 3, batches.per_epoch):
        np.testing.assert_array_equal(batches(1, step).tokens, again(1, step).tokens)
    assert (batches(1, 0).tokens != batches(1, batches.per_epoch).tokens).any()
    assert (batches(1, 0).tokens != batches(2, 0).tokens).any()


@pytest.mark.parametrize("start", [*STARTS, NORMED])
def test_initial_weights_have_the_sizes_of_their_start(start):
    [cell, *_] = cells(Config())
    cfg = study.run_config(cell, 27, start, 0).model
    params = init_params(jax.random.key(0), kinds.param_specs(cfg))
    kernel, head = STARTS.get(start, STARTS["loud, quiet head"])
    cut = 0.9866  # the standard deviation of a unit normal that is cut at three
    assert np.std(params["kernel"]) == pytest.approx(kernel * cut, rel=0.03)
    assert np.std(params["unembed"]) == pytest.approx(head * cut, rel=0.03)
    assert ("gain" in params) == (start == NORMED)


def test_the_rows_of_cells(path):
    cfg = study.resolve(dataclasses.replace(TINY, path=path))
    first, normed, symmetric, deep = cells(cfg)
    rows = study.run_cell(first)
    dev = [row for row in rows if row.metric == "dev_loss"]
    assert {(row.fields["start"], row.seed, row.step) for row in dev} == {
        (start, seed, step) for start in STARTS for seed in (0, 1) for step in (2, 4)
    }
    assert {row.metric for row in rows if not row.fields} == {
        "counted_loss",
        "unigram_loss",
        "vocabulary",
    }
    saturated = {
        (r.fields["start"], r.seed): r.value for r in rows if (r.metric, r.step) == ("saturated", 0)
    }
    for seed in (0, 1):
        assert saturated["loud", seed] == saturated["loud, quiet head", seed]
        assert saturated["loud", seed] > saturated["tuned", seed]
        of_units = [
            r.value
            for r in rows
            if (r.metric, r.fields.get("start"), r.seed, r.step)
            == ("saturated_unit", "loud", seed, 0)
        ]
        assert of_units == sorted(of_units) and len(of_units) == len(QUANTILES)
        assert of_units[0] < saturated["loud", seed] < of_units[-1]
    rows = study.run_cell(normed)
    folds = [row.value for row in rows if row.metric == "fold_difference"]
    assert len(folds) == 2 and max(folds) < 1e-5
    rows = study.run_cell(symmetric)
    spread = {(r.fields["start"], r.metric): r.value for r in rows if "spread" in r.metric}
    for start in SYMMETRY:
        drawn = [
            [r.value for r in rows if r.fields["start"] == start and r.fields.get("unit") == unit]
            for unit in range(8)
        ]
        assert len(drawn[0]) == min(study.DRAWN[0], study.open_names(path).vocab_size)
        assert all(unit == drawn[0] for unit in drawn) == (start != "tuned")
        assert any(drawn[0]) == (start != "all zero")
        same = [spread[start, metric] for metric in ("gradient_spread", "unit_spread")]
        assert same == [0.0, 0.0] if start != "tuned" else min(same) > 1e-4
    rows = study.run_cell(deep)
    assert len(rows) == len(GAINS) * 2 * 3 * cfg.depth
    with pytest.raises(ConfigError, match="the list has changed"):
        study.resolve(dataclasses.replace(cfg, names_sha256="0" * 64))


def test_saturated_values_and_dead_units_against_numpy(path):
    names = study.open_names(path)
    [cell, *_] = cells(dataclasses.replace(TINY, path=path))
    cfg = study.run_config(cell, names.vocab_size, "loud", 0).model
    batch = study.pack(names.train, 16)
    params = init_params(jax.random.key(1), kinds.param_specs(cfg))
    params["bias"] = params["bias"].at[:2].set([50.0, -50.0])  # of which these two are dead
    h = np.asarray(kinds.build(cfg).hidden(params, batch.tokens, segment_ids=batch.segment_ids))
    beyond = np.abs(h[batch.weights > 0]) > 0.99  # [tokens, D]
    found = jax.jit(study._look(cfg, batch))(params)
    np.testing.assert_allclose(found["saturated_by_unit"], beyond.mean(0), rtol=1e-6)
    assert found["saturated"] == pytest.approx(beyond.mean(), rel=1e-6)
    assert found["dead"] == beyond.all(0).mean() >= 0.25


def test_a_stack_of_layers_against_numpy():
    rows = study.deep({"num_seeds": 1, "depth": 2, "d_deep": 64})
    sizes = {
        (r.fields["gain"], r.fields["layer"]): r.value for r in rows if r.metric == "value_size"
    }
    rng = np.random.default_rng(0)
    for name, gain in GAINS.items():
        x = rng.normal(size=(20_000, 64))
        for layer in (1, 2):
            x = np.tanh(gain * x @ rng.normal(size=(64, 64)) / 8)
            assert sizes[name, layer] == pytest.approx(np.std(x), rel=0.1)


def made_up(dev, size):
    """Results as of a run: dev(start, seed) at the end, size(gain) of the last layer's values."""
    cfg = dataclasses.replace(Config(), num_seeds=5, goal=2.11)
    rows = [
        Row({}, None, None, "counted_loss", 2.3, "nats/token"),
        Row({}, None, None, "unigram_loss", 2.8, "nats/token"),
        Row({}, None, None, "vocabulary", 27.0, "1"),
    ]
    for seed in range(5):
        for start in (*STARTS, NORMED):
            fields = {"start": start}
            quiet = start != "loud"
            first = math.log(27) + (0.01 if quiet else 20)
            rows.append(Row(fields, seed, 0, "first_loss", first, "1"))
            for step, more in ((0, 0.0), (400, 0.1 + 0.01 * seed)):
                share = (0.1 if start == "tuned" else 0.6) + more
                rows.append(Row(fields, seed, step, "saturated", share, "1"))
                rows.append(Row(fields, seed, step, "dead", more / 4, "1"))
                rows += [
                    Row({**fields, "units": q}, seed, step, "saturated_unit", share, "share")
                    for q in QUANTILES
                ]
            for metric in ("train_loss", "dev_loss", "test_loss"):
                for step, more in ((50, 0.5), (400, 0.0)):
                    loss = dev(start, seed) + more
                    rows.append(Row(fields, seed, step, metric, loss, "nats/token"))
        rows.append(Row({}, seed, 400, "fold_difference", 1e-7, "share"))
        for start in SYMMETRY:
            spread = 0.1 if start == "tuned" else 0.0
            rows += [
                Row({"start": start}, seed, 400, "sgd_loss", 2.85, "nats/token"),
                Row({"start": start}, seed, 0, "gradient_spread", spread, "1"),
                Row({"start": start}, seed, 400, "unit_spread", spread, "1"),
            ]
            for character, unit in itertools.product("\nab", range(8) if seed == 0 else ()):
                fields = {"start": start, "character": character, "unit": unit}
                rows.append(Row(fields, 0, 0, "head_gradient", spread * unit, "1"))
        for gain in GAINS:
            for layer in range(1, 21):
                fields = {"gain": gain, "layer": layer}
                values = {"value_size": 1.0 if layer == 1 else size(gain)}
                values |= {"deep_saturated": 0.3, "deep_gradient": 1.0}
                rows += [Row(fields, seed, 0, metric, v, "1") for metric, v in values.items()]
    return Results(study="initialisation", config=to_dict(cfg), rows=tuple(rows))


def test_verdicts_follow_from_the_rows():
    level = {"loud": 2.6, "loud, quiet head": 2.3, "tuned": 2.1, NORMED: 2.4}
    results = made_up(
        lambda start, seed: level[start] + 0.001 * math.sin(seed + len(start)),
        lambda gain: {"1": 0.3, "5/3": 0.9, "3": 1.0}[gain],
    )
    found = claims(results)
    refused = [claim.text for claim in found if claim.verdict != SUPPORTED]
    assert refused == [
        "With batch norm the loud start with a quiet head ends lower than without",
        "At 3 more than half of the values at layer 20 are saturated",
    ]
    assert {claim.verdict for claim in found if claim.text in refused} == {NOT_SUPPORTED}
    assert len(found) == 17 and found[-1].text.endswith("2.11 or lower")
    figures = initialisation.plot(results)
    names = [figure.name for figure in figures]
    assert names[:3] == ["dev_loss", "saturated_units", "first_gradient"] and len(names) == 6
    losses, symmetric = initialisation.tables(results)
    assert [row[0] for row in losses.rows] == [*STARTS, NORMED]
    assert [row[0] for row in symmetric.rows] == list(SYMMETRY)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_steps=5 must be a multiple of eval_every=2"):
        dataclasses.replace(TINY, num_steps=5)
    with pytest.raises(ConfigError, match="no list of names"):
        study.resolve(dataclasses.replace(TINY, path=str(tmp_path / "none.txt")))
