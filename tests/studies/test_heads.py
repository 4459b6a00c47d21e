"""Heads: equal sizes, attention scores and pruning by hand, and made-up verdicts."""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from experiments import heads as study
from experiments.heads import MEAN, SCORES, ZERO, claims, costs, of_heads, plot, run, tables
from experiments.texts import plays
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, apply_overrides, to_dict
from jaxlm.core.params import count_params
from jaxlm.core.results import Results, Row
from jaxlm.models import transformer

S = 8
TINY = apply_overrides(
    study.Config(),
    {
        "num_heads": (1, 2, 4),
        "drawn_heads": 2,
        "drawn_tokens": 3,
        "num_seeds": 2,
        "d_model": 8,
        "context_length": S,
        "batch_size": 4,
        "num_steps": 4,
        "eval_every": 2,
        "eval_tokens": 512,
        "warmup_steps": 1,
    },
)


def model_of(cell):
    return run.run_config(cell, 0).model


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_the_number_of_heads_changes_no_size(scale):
    cfg = apply_overrides(study.Config(scale=scale), study.SCALES.get(scale, {}))
    specs = [transformer.param_specs(model_of(cell)) for cell in study.cells(cfg)]
    assert len({count_params(s) for s in specs}) == 1
    spread = {spec["blocks"][name].fans for spec in specs for name in ("wq", "wo")}
    assert spread == {(cfg.d_model, cfg.d_model)}
    drawn = {cell["num_heads"] for cell in study.cells(cfg) if cell["drawn"]}
    assert drawn == {cfg.num_heads[0], cfg.drawn_heads}


def test_scores_of_heads_that_do_one_thing():
    """A head each on the token before, the own, the first, and evenly on all so far."""
    size = 5
    before = np.eye(size, k=-1)
    before[0, 0] = 1
    first = np.zeros((size, size))
    first[:, 0] = 1
    evenly = np.tril(np.ones((size, size))) / np.arange(1, size + 1)[:, None]
    maps = np.stack([before, np.eye(size), first, evenly])
    scores = run.attention_scores(jnp.asarray(np.stack([maps, maps], 0)[None]))  # N=1, B=2
    assert set(scores) == set(SCORES)
    # Of places 2 to 5: a share of 1/2, 1/3, 1/4, 1/5 each, and distances 1/2, 2/2, 3/2, 4/2.
    share, distance = np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5]), np.mean([0.5, 1, 1.5, 2])
    np.testing.assert_allclose(scores["previous"], [[1, 0, 1 / 4, share]], rtol=1e-6)
    np.testing.assert_allclose(scores["own"], [[0, 1, 0, share]], rtol=1e-6)
    np.testing.assert_allclose(scores["first"], [[1 / 4, 0, 1, share]], rtol=1e-6)
    np.testing.assert_allclose(scores["distance"], [[1, 0, np.mean([1, 2, 3, 4]), distance]])


def test_a_head_set_to_its_mean_is_a_bias_and_without_heads_there_is_no_attention(params_of):
    cfg = dataclasses.replace(model_of(study.cells(TINY)[2]), vocab_size=11, num_layers=1)
    params = params_of(cfg)
    tokens = np.random.default_rng(0).integers(0, 11, (3, S)).astype(np.int32)
    trace = quick_jit(functools.partial(transformer.trace, cfg=cfg))
    seen = trace(params, tokens)
    means = np.mean(seen.heads, axis=(1, 2))  # [1, 4, 2]
    keep = np.array([[1, 0, 1, 1]], np.float32)
    # With w_down idle a layer adds what attention does: the heads' outputs by their slices of wo.
    idle = {"w_down": jnp.zeros_like(params["blocks"]["w_down"])}
    params = {**params, "blocks": params["blocks"] | idle}
    wo, bo = (np.asarray(params["blocks"][name][0]) for name in ("wo", "bo"))
    embedded = params["embed"][tokens]
    for fill, value in ((ZERO, 0.0), (MEAN, means[0, 1])):
        heads = np.array(seen.heads[0])
        heads[:, :, 1] = value
        want = embedded + np.einsum("bshe,hed->bsd", heads, wo) + bo
        pruned = run.without(params, means, keep, np.float32(fill == MEAN))
        got = trace(pruned, tokens).residual[0]
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    nothing = run.without(params, means, np.zeros((1, 4), np.float32), np.float32(0))
    np.testing.assert_allclose(trace(nothing, tokens).residual[0], embedded + bo, rtol=1e-6)


def test_costs_and_order_of_removal_by_hand():
    """Losses that add up: each head is worth its own amount, on every window."""
    worth = np.array([[0.3, 0.1], [0.2, 0.5]])
    cfg = dataclasses.replace(model_of(study.cells(TINY)[1]), num_layers=2)
    noise = np.random.default_rng(0).normal(size=6)

    def losses_without(keeps, fill):
        worths = worth * (2 if fill == ZERO else 1)
        return np.array([2.0 + noise + np.sum((1 - keep) * worths) for keep in keeps])

    rows = run.pruning_rows({"num_heads": 2}, 0, losses_without, cfg)
    found = Results(study="heads", config=to_dict(TINY), rows=tuple(rows))
    np.testing.assert_allclose(of_heads(found, "cost", 2)[0], worth)
    assert costs(found, 2)[0] == pytest.approx({1: 0.5, 2: 0.3, 3: 0.2, 4: 0.1})
    assert costs(found, 2, ZERO)[0] == pytest.approx({1: 1.0, 2: 0.6, 3: 0.4, 4: 0.2})
    removed = found.select("cost_of_several").values()
    np.testing.assert_allclose(removed, [0, 0.1, 0.3, 0.6, 1.1])


def test_the_rows_of_a_cell():
    cell = study.cells(TINY)[1]
    results = Results(study="heads", config=to_dict(TINY), rows=tuple(run.run_cell(cell)))
    assert {(row.seed, row.step) for row in results.select("loss").rows} == {
        (seed, step) for seed in (0, 1) for step in (2, 4)
    }
    for name in (*SCORES, "cost"):
        values = of_heads(results, name, 2)
        assert set(values) == {0, 1} and np.isfinite(list(values.values())).all()
    assert sorted(costs(results, 2)[0]) == [1, 2, 3, 4]
    shown = "".join(row.fields["character"] for row in results.select("token").rows)
    validation = plays().validation.take(np.arange(3))
    assert shown == plays().tokenizer.decode(validation)
    maps = results.select("attention")
    assert len(maps.rows) == 4 * (1 + 2 + 3)  # heads, and places that are not in the future
    for (_, _, _), group in maps.by("layer", "head", "query").items():
        assert sum(group.values()) == pytest.approx(1, abs=1e-5)
    nothing_gone = results.select("cost_of_several", removed=0).values()
    assert nothing_gone == [0, 0]
    several = results.select("cost_of_several", removed=1).values()
    cheapest = [ranks[4] for ranks in costs(results, 2).values()]
    np.testing.assert_allclose(several, cheapest, rtol=1e-9)


def made_up(loss, cost, previous):
    """Results as of a run: loss(heads), cost(heads, layer, head, fill), previous(head)."""
    cfg = dataclasses.replace(TINY, num_seeds=5, num_heads=(1, 2, 4), drawn_heads=2)
    rows = []
    for seed in range(5):
        wobble = 1 + 0.01 * math.sin(seed)
        for heads in cfg.num_heads:
            at = {"num_heads": heads}
            for step in (2, 4):
                rows.append(Row(at, seed, step, "loss", loss(heads) * wobble, "nats/token"))
            places = [(layer, head) for layer in range(2) for head in range(heads)]
            for fill in (ZERO, MEAN):
                worth = {p: cost(heads, *p, fill) * wobble for p in places}
                order = sorted(places, key=lambda p: -worth[p])
                for layer, head in places:
                    rank = 1 + order.index((layer, head))
                    named = {**at, "fill": fill, "layer": layer, "head": head, "rank": rank}
                    for metric, more in (("cost", 0), ("cost_low", -0.1), ("cost_high", 0.1)):
                        value = worth[layer, head] + more
                        rows.append(Row(named, seed, None, metric, value, "nats/token"))
            total = 0.0
            for removed, place in enumerate([None, *reversed(order)]):
                total += worth[place] if place else 0.0
                named = {**at, "removed": removed}
                rows.append(Row(named, seed, None, "cost_of_several", total, "nats/token"))
            for layer, head in places:
                named = {**at, "layer": layer, "head": head}
                for name in SCORES:
                    value = previous(head) * wobble if name == "previous" else 0.1
                    rows.append(Row(named, seed, None, name, value, "share"))
    for heads in (1, 2):
        at = {"num_heads": heads}
        rows.append(Row(at, None, None, "parameters", 100.0, "parameters"))
        for q, k in itertools.combinations_with_replacement(range(3), 2):
            where = {**at, "layer": 0, "head": 0, "query": k, "key": q}
            rows.append(Row(where, 0, None, "attention", 1 / (k + 1), "share"))
        rows += [
            Row({**at, "query": q, "character": c}, 0, None, "token", 7.0, "id")
            for q, c in enumerate("a b")
        ]
    rows.append(Row({"num_heads": 4}, None, None, "parameters", 100.0, "parameters"))
    return Results(study="heads", config=to_dict(cfg), rows=tuple(rows))


def test_verdicts_when_all_is_as_claimed():
    def cost(heads, layer, head, fill):
        dear = 1.0 if (layer, head) == (0, 0) else 0.01
        return dear * (1.5 if fill == ZERO else 1)

    results = made_up(lambda heads: 2.0 if heads == 1 else 1.8, cost, lambda head: 0.9 - 0.5 * head)
    assert [claim.verdict for claim in claims(results)] == [SUPPORTED] * 9
    assert all(figure.svg().startswith("<svg") for figure in plot(results))
    assert plot(results)[2].content.row_labels == ("a", "\N{MIDDLE DOT}", "b")
    by_heads, of_some = tables(results)
    assert [row[0] for row in by_heads.rows] == [1, 2, 4]
    assert [row[:2] for row in of_some.rows] == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert of_some.rows[0][-2:] == ["1.00 [0.90, 1.10]", "1.50 [1.40, 1.60]"]


def test_verdicts_when_the_opposite_holds():
    def cost(heads, layer, head, fill):
        return (0.1 + 0.1 * layer + 0.01 * head) * (1.5 if fill == MEAN else 1)

    results = made_up(lambda heads: 1.5 + 0.1 * heads, cost, lambda head: 0.3 - 0.1 * head)
    assert [claim.verdict for claim in claims(results)] == [NOT_SUPPORTED] * 9
    one = dataclasses.replace(results, rows=tuple(r for r in results.rows if r.seed in (0, None)))
    assert {claim.verdict for claim in claims(one)} == {INCONCLUSIVE}


@pytest.mark.parametrize(
    "override, message",
    [
        ({"num_heads": "4,2"}, "must rise"),
        ({"drawn_heads": 1}, "drawn_heads=1 must be among"),
        ({"num_heads": "1,4,24"}, "d_model=64 must be a multiple of 48"),
        ({"drawn_tokens": 65}, "at most context_length"),
        ({"num_steps": 55}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), override)
