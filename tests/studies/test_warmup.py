"""The warmup study: its cells, the rows of a tiny one, and verdicts on made-up losses."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import warmup
from experiments.warmup import Config, cells, claims, plot, tables
from experiments.warmup.run import run_cell, run_config, schedule_rows
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import apply_overrides, to_dict
from jaxlm.core.results import Results, Row
from jaxlm.train.program import group_by_structure

TINY = Config(
    peak_lrs=(1e-3, 1e-2),
    warmup_steps=(1, 2),
    num_seeds=2,
    num_layers=1,
    d_model=8,
    num_heads=1,
    context_length=8,
    batch_size=2,
    num_steps=4,
    eval_every=2,
    eval_tokens=128,
)


def cell_of(cfg, schedule, placement="pre"):
    [cell] = [
        c for c in cells(cfg) if (c["schedule"], c["norm_placement"]) == (schedule, placement)
    ]
    return cell


def made_up(losses, schedules=("warmup_cosine", "constant"), **changes):
    """Results as of a run: losses(schedule, placement, peak_lr, warmup, seed) -> final loss."""
    cfg = dataclasses.replace(
        TINY, schedules=schedules, warmup_steps=(1, 50), num_seeds=5, num_steps=100, eval_every=50
    )
    cfg = dataclasses.replace(cfg, **changes)
    rows = []
    for cell in cells(cfg):
        structure = {name: cell[name] for name in ("schedule", "norm_placement")}
        rows.append(Row(structure, None, None, "unigram_loss", 3.3, "nats/token"))
        for peak_lr in cell["peak_lrs"]:
            for steps in cell["warmup_steps"]:
                fields = {**structure, "peak_lr": peak_lr, "warmup_steps": steps}
                for seed in range(cfg.num_seeds):
                    final = losses(*structure.values(), peak_lr, steps, seed)
                    rows.append(Row(fields, seed, 50, "validation_loss", final + 0.5, "nats"))
                    rows.append(Row(fields, seed, 100, "validation_loss", final, "nats"))
                    diverged = float(not final < 3.3)
                    rows.append(Row(fields, seed, 100, "diverged", diverged, "share"))
        rows += schedule_rows(cell, structure)
    return Results(study="warmup", config=to_dict(cfg), rows=tuple(rows))


def as_expected(schedule, placement, peak_lr, steps, seed):
    """Post-norm diverges at the high rate without warmup, and does best there with it."""
    noise = 0.01 * math.sin(seed)
    if placement == "pre":
        return 2.5 + noise + 0.1 * (schedule == "constant")
    if peak_lr == 1e-2:
        return (3.5 if steps < 50 else 2.5) + noise
    return 2.7 + noise


def test_one_cell_for_each_schedule_and_placement():
    found = cells(Config())
    assert len(found) == 10
    assert len({(c["schedule"], c["norm_placement"]) for c in found}) == 10
    lengths = {c["schedule"]: c["warmup_steps"] for c in found}
    assert lengths["constant"] == [0] and lengths["warmup_inverse_sqrt_original"] == [15]
    assert lengths["warmup_cosine"] == [1, 15, 50]


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_a_cell_is_one_program_and_its_schedules_fit_the_run(scale):
    cfg = apply_overrides(Config(), {"scale": scale, **warmup.SCALES.get(scale, {})})
    for cell in cells(cfg):
        runs = [
            run_config(cell, lr, steps, seed)
            for lr in cell["peak_lrs"]
            for steps in cell["warmup_steps"]
            for seed in (0, 1)
        ]
        assert len(group_by_structure(runs)) == 1
        assert len(schedule_rows(cell, {})) == len(cell["warmup_steps"]) * cell["num_steps"]


def test_rates_are_those_of_the_formulas_and_both_inverse_roots_have_the_peak():
    cfg = dataclasses.replace(TINY, warmup_steps=(10, 20), num_steps=100, eval_every=50)
    n = np.arange(100)

    def rates(schedule):
        rows = schedule_rows(cell_of(cfg, schedule), {})
        assert {row.fields["peak_lr"] for row in rows} == {1e-2}
        return {
            w: np.array([row.value for row in rows if row.fields["warmup_steps"] == w])
            for w in cell_of(cfg, schedule)["warmup_steps"]
        }

    root = {w: 1e-2 * np.minimum((n + 1) / w, np.sqrt(w / (n + 1))) for w in (10, 20)}
    for w, found in rates("warmup_inverse_sqrt").items():
        np.testing.assert_allclose(found, root[w], rtol=1e-5)
    [original] = rates("warmup_inverse_sqrt_original").values()
    np.testing.assert_allclose(original, root[20], rtol=1e-5)
    assert original.max() == pytest.approx(1e-2) and original.argmax() == 19
    np.testing.assert_allclose(rates("constant")[0], 1e-2)


def test_the_rows_of_a_cell():
    cell = cell_of(dataclasses.replace(TINY, peak_lrs=(1e-20, 1e-2)), "warmup_cosine", "post")
    rows = run_cell(cell)
    losses = [row for row in rows if row.metric == "validation_loss"]
    assert len(losses) == 2 * 2 * 2 * 2  # rates, warmups, seeds, evaluations
    assert {row.step for row in losses} == {2, 4}
    assert len({(*row.fields.values(), row.seed, row.step) for row in losses}) == len(losses)
    [unigram] = [row.value for row in rows if row.metric == "unigram_loss"]
    assert 2.5 < unigram < 4.0
    final = {(*row.fields.values(), row.seed): row.value for row in losses if row.step == 4}
    diverged = [row for row in rows if row.metric == "diverged"]
    assert len(diverged) == len(final)
    for row in diverged:
        assert row.value == (final[*row.fields.values(), row.seed] >= unigram - 0.05)
    # Every lane is in its place: one that hardly moves keeps its loss, the others do not.
    for row in losses:
        same = row.value == final[*row.fields.values(), row.seed]
        assert same == (row.step == 4 or row.fields["peak_lr"] == 1e-20)
    still = {key[3:]: value for key, value in final.items() if key[2] == 1e-20}
    assert still[1, 0] == still[2, 0] != still[1, 1] == still[2, 1]


def test_claims_that_hold_on_losses_made_to_fit():
    found = claims(made_up(as_expected))
    assert [claim.verdict for claim in found] == [SUPPORTED] * 6
    at_one_rate, at_best, diverged, *_ = (claim.evidence for claim in found)
    assert "cosine (0.01): 1.000" in at_one_rate
    assert "cosine (0.001 against 0.01): 0.200" in at_best
    assert diverged.startswith("Share of runs, short warmup minus long: 0.500")  # one rate of two


def test_claims_that_are_wrong_are_not_supported():
    def opposite(schedule, placement, peak_lr, steps, seed):
        swapped = {"pre": "post", "post": "pre"}[placement]
        loss = as_expected(schedule, swapped, peak_lr, steps, seed)
        return loss + 0.5 * (schedule == "warmup_cosine")

    found = claims(made_up(opposite))
    assert [claim.verdict for claim in found] == [NOT_SUPPORTED] * 6


def test_a_run_without_a_finite_loss_leaves_its_claim_open():
    def lost(schedule, placement, peak_lr, steps, seed):
        if placement == "post" and steps == 1 and seed == 2:
            return math.nan
        return as_expected(schedule, placement, peak_lr, steps, seed)

    results = made_up(lost)
    assert claims(results)[0].verdict == INCONCLUSIVE
    assert "not finite in 1 of 5 seeds" in claims(results)[0].evidence
    assert plot(results) and tables(results)


@pytest.mark.parametrize(
    "peak, shift, expected",
    [(1e-3, 0.0, SUPPORTED), (1e-2, 0.1, SUPPORTED), (1e-3, 0.1, NOT_SUPPORTED)],
)
def test_the_two_forms_are_compared_run_by_run(peak, shift, expected):
    def losses(schedule, placement, peak_lr, steps, seed):
        off = shift if schedule.endswith("original") and (peak_lr, seed) == (peak, 3) else 0.0
        return as_expected("", placement, peak_lr, steps, seed) + off

    forms = ("warmup_inverse_sqrt", "warmup_inverse_sqrt_original")
    [claim] = claims(made_up(losses, schedules=forms))
    assert claim.verdict == expected
    assert claim.evidence.endswith(f"at any peak: {shift:.1e}")


def test_figures_and_tables_of_all_schedules():
    results = made_up(as_expected, schedules=Config().schedules)
    figures = plot(results)
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names) == 6
    assert all(figure.svg().startswith("<svg") for figure in figures)
    [share] = [figure for figure in figures if figure.name == "share_diverged"]
    of_post = dict(share.content.maps)["post-norm"]
    np.testing.assert_array_equal(of_post, [[0, 1], [0, 0]])  # [warmup 1, 50], [1e-3, 1e-2]
    [table] = tables(results)
    assert len(table.rows) == 2 * (3 * 2 + 1 + 1)
    row = next(r for r in table.rows if r[:3] == ["post-norm", "cosine", 1])
    assert row[3] == "0.001" and row[5] == "5 of 10"


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="peak_lrs=.* must rise"):
        Config(peak_lrs=(1e-2, 1e-3))
    with pytest.raises(ValueError, match="multiple of eval_every"):
        Config(num_steps=130)
    with pytest.raises(ValueError, match="schedules must name at least one"):
        Config(schedules=())
