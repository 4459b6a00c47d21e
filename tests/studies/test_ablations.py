"""The ablations: that variants differ in what they say only, rows, and made-up verdicts."""

import dataclasses
import math

import pytest

from experiments import ablations
from experiments.ablations import BASE, CLAIMS, Config, at_best, cells, claims, plot, tables
from experiments.ablations.run import run_cell, run_config
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import apply_overrides, diff, to_dict
from jaxlm.core.params import count_params
from jaxlm.core.results import Results, Row
from jaxlm.models.transformer import param_specs
from jaxlm.train.program import group_by_structure

TINY = Config(
    peak_lrs=(1e-3, 1e-2),
    num_seeds=2,
    num_layers=1,
    d_model=8,
    num_heads=1,
    d_ff=16,
    context_length=8,
    batch_size=4,
    num_steps=4,
    warmup_steps=2,
    eval_every=2,
    eval_tokens=128,
)


def cell_of(cfg, variant):
    [cell] = [cell for cell in cells(cfg) if cell["variant"] == variant]
    return cell


def made_up(losses, **changes):
    """Results as of a run: losses(variant, peak_lr, seed) -> final loss."""
    cfg = dataclasses.replace(TINY, num_seeds=5, **changes)
    rows = []
    for cell in cells(cfg):
        variant = {"variant": cell["variant"]}
        rows.append(Row(variant, None, None, "parameters", 1000.0, "parameters"))
        rows.append(Row(variant, None, None, "unigram_loss", 3.3, "nats/token"))
        for peak_lr in cell["peak_lrs"]:
            for seed in range(cfg.num_seeds):
                fields, final = (
                    {**variant, "peak_lr": peak_lr},
                    losses(*variant.values(), peak_lr, seed),
                )
                for tokens, more in ((64, 0.5), (128, 0.0)):
                    at = {**fields, "tokens": tokens}
                    step = tokens // 8 // cell["batch_size"]
                    rows.append(Row(at, seed, step, "validation_loss", final + more, "nats/token"))
                rows.append(Row(fields, seed, step, "diverged", float(not final < 3.3), "share"))
    return Results(study="ablations", config=to_dict(cfg), rows=tuple(rows))


def test_what_each_variant_changes():
    base = run_config(cell_of(Config(), BASE), 1e-3, 0)
    changed = {
        variant: {line.split(":")[0].split("=")[0].split()[0] for line in diff(base, other)}
        for variant in CLAIMS
        for other in [run_config(cell_of(Config(), variant), 1e-3, 0)]
    }
    length = {"train.num_steps", "train.steps_per_call", "train.eval_every", "train.save_every"}
    length |= {"data.batch_size", "optim.warmup_steps"}
    assert changed == {
        "no norm": {"model.norm_placement"},
        "post-norm": {"model.norm_placement"},
        "no positions": {"model.positions"},
        "SiLU": {"model.activation", "model.d_ff"},
        "tied head": {"model.tied_head"},
        "QK norm": {"model.qk_norm"},
        "half the batch": length,
        "twice the batch": length,
    }


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_equal_parameters_equal_tokens_and_one_program_each(scale):
    cfg = apply_overrides(Config(), {"scale": scale, **ablations.SCALES.get(scale, {})})
    cfg = dataclasses.replace(cfg, variants=tuple(CLAIMS))

    def size(variant):
        return count_params(param_specs(run_config(cell_of(cfg, variant), 1e-3, 0).model))

    assert size("SiLU") == size(BASE)
    for cell in cells(cfg):
        tokens = [cell["batch_size"] * cell[n] for n in ("num_steps", "eval_every", "warmup_steps")]
        assert tokens == [
            cfg.batch_size * n for n in (cfg.num_steps, cfg.eval_every, cfg.warmup_steps)
        ]
        runs = [run_config(cell, lr, seed) for lr in cell["peak_lrs"] for seed in (0, 1)]
        assert len(group_by_structure(runs)) == 1


def test_the_rows_of_a_cell():
    cfg = dataclasses.replace(TINY, peak_lrs=(1e-20, 1e-2))
    rows = run_cell(cell_of(cfg, "half the batch"))
    losses = [row for row in rows if row.metric == "validation_loss"]
    # Half the batch of 4 for twice the 4 steps, evaluated after the same tokens as the base.
    assert {(row.step, row.fields["tokens"]) for row in losses} == {(4, 64), (8, 128)}
    assert len(losses) == 2 * 2 * 2  # rates, seeds, evaluations
    # Every lane is in its place: one that hardly moves keeps its loss, the others do not.
    values = {(row.fields["peak_lr"], row.seed, row.step): row.value for row in losses}
    for seed in (0, 1):
        assert values[1e-20, seed, 4] == values[1e-20, seed, 8]
        assert values[1e-2, seed, 4] != values[1e-2, seed, 8]
    assert values[1e-20, 0, 4] != values[1e-20, 1, 4]
    [parameters] = [row.value for row in rows if row.metric == "parameters"]
    # embedding and head 78 x 8; q, k, v, o 8 x 8; three matrices 8 x 16; three norms of 8
    assert parameters == 2 * 78 * 8 + 4 * 64 + 3 * 128 + 3 * 8
    assert len([row for row in rows if row.metric == "diverged"]) == 4


def test_each_variant_is_judged_at_its_own_best_rate():
    def losses(variant, peak_lr, seed):
        # The base learns at the high rate only, the others at the low one, and end 0.1 higher.
        fits = peak_lr == (1e-2 if variant == BASE else 1e-3)
        return (2.0 if fits else 3.0) + 0.1 * (variant != BASE) + 0.02 * math.sin(seed)

    results = made_up(losses)
    assert {row.fields["peak_lr"] for row in at_best(results, BASE).rows} == {1e-2}
    found = claims(results)
    assert len(found) == len(CLAIMS)
    assert {claim.verdict for claim in found} == {SUPPORTED}
    assert all("0.100" in claim.evidence for claim in found)
    [table] = tables(results)
    assert [row[3] for row in table.rows[:2]] == ["0.01 (highest)", "0.001 (lowest)"]
    assert all(figure.svg().startswith("<svg") for figure in plot(results))


def test_an_ablation_that_helps_is_not_supported_and_one_that_is_lost_is_open():
    def losses(variant, peak_lr, seed):
        if variant == "no norm":
            return math.nan
        return 2.0 - 0.1 * (variant == "SiLU") + 0.01 * math.sin(seed * (variant != BASE))

    results = made_up(losses, variants=("no norm", "SiLU"))
    assert [claim.verdict for claim in claims(results)] == [INCONCLUSIVE, NOT_SUPPORTED]
    figure = plot(results)[0]
    assert figure.content.x_ticks == ("SiLU", "no norm")  # sorted; what is not finite comes last
    [table] = tables(results)
    assert table.rows[1][-1] == "10 of 10"


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="batch_size=3 must be even"):
        Config(batch_size=3)
    with pytest.raises(ValueError, match="peak_lrs=.* must rise"):
        Config(peak_lrs=(1e-2, 1e-2))
