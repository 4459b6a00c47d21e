"""The shift to another domain: its texts and mixtures, rows of a run by hand, made-up verdicts."""

import dataclasses
import math
import pathlib
import sysconfig

import numpy as np
import pytest

from experiments import domain_shift as study
from experiments.domain_shift import (
    BASE,
    END,
    FULL,
    LORA,
    NEW,
    OLD,
    STOPPING,
    after,
    before,
    claims,
    forgetting,
    methods,
    plot,
    run,
    tables,
)
from experiments.texts import plays
from jaxlm.analysis.claims import NOT_SUPPORTED, SUPPORTED
from jaxlm.core.config import ConfigError, apply_overrides, from_dict, to_dict
from jaxlm.core.results import Results, Row
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig

S, B = 8, 4
TINY = apply_overrides(
    study.Config(),
    {
        "base.num_layers": 1,
        "base.d_model": 8,
        "base.num_heads": 1,
        "base.context_length": S,
        "base.batch_size": 4,
        "base.num_steps": 4,
        "base.eval_every": 2,
        "modules": ("bisect.py", "heapq.py", "keyword.py", "copy.py"),
        "num_stopping_modules": 1,
        "num_test_modules": 1,
        "num_seeds": 2,
        "old_rows": (1, 3),
        "rank": 2,
        "batch_size": B,
        "num_steps": 4,
        "eval_every": 2,
        "warmup_steps": 1,
        "eval_batches": 2,
    },
)
FEW, MANY = "1 of 4 rows old", "3 of 4 rows old"


@pytest.fixture(scope="module")
def cfg():
    return run.resolve(TINY)


def as_bytes(split):
    return bytes(split.take(np.arange(split.num_tokens)).astype(np.uint8))


def test_no_file_has_two_parts_to_play(cfg):
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    files = [(folder / name).read_bytes() for name in TINY.modules]
    train, stopping, test = map(as_bytes, run.new_texts(cfg))
    assert (train, stopping, test) == (files[0] + files[1], files[2], files[3])


def test_the_domains_are_read_in_the_order_of_their_names(cfg):
    windows = run.domains(cfg)
    assert windows.tokens.shape == (3, 2, B, S)
    new = run.new_texts(cfg)
    texts = {OLD: plays("bytes").validation, NEW: new.test, STOPPING: new.stopping}
    for domain, of_domain in zip(run.DOMAINS, windows.tokens, strict=True):
        text = as_bytes(texts[domain])
        for row in of_domain.reshape(-1, S):
            assert bytes(row.astype(np.uint8)) in text


def test_lanes_mix_in_as_many_old_rows_as_their_method_says(cfg):
    batch = run.mixed_inputs(cfg, [(0, 5), (1, 5), (3, 6)])(2, 4)
    assert batch.tokens.shape == (3, 2, B, S)
    texts = as_bytes(run.new_texts(cfg).train), as_bytes(plays("bytes").train)
    for lane, num_old in enumerate((0, 1, 3)):
        for rows in batch.tokens[lane]:
            is_old = [bytes(row.astype(np.uint8)) in texts[1] for row in rows]
            is_new = [bytes(row.astype(np.uint8)) in texts[0] for row in rows]
            assert is_old[B - num_old :] == [True] * num_old
            assert is_new[: B - num_old] == [True] * (B - num_old)


@pytest.fixture(scope="module")
def found(cfg, params_of):
    """Rows of all cells, from a base that is drawn: to train it would be to compile Muon."""
    sizes = {name: getattr(cfg.base, name) for name in ("num_layers", "d_model", "num_heads")}
    model = TransformerConfig(vocab_size=256, context_length=S, **sizes)
    base = run.Base(model, params_of(model), np.array([5.0, 6.0, 7.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_base", lambda _: base)
        rows = [row for cell in study.cells(cfg) for row in run.run_cell(cell)]
    return Results(study="domain_shift", config=to_dict(cfg), rows=tuple(rows))


@pytest.mark.slow
def test_the_base_is_trained_on_plays_and_judged_in_each_domain(cfg):
    base = run.open_base(cfg)
    rows = run.run_cell(study.cells(cfg)[0])
    assert [row.fields for row in rows] == [{"method": BASE, "domain": d} for d in run.DOMAINS]
    assert [row.value for row in rows] == base.losses.tolist()
    forward = transformer.build(base.model).forward
    for batches, loss in zip(run.domains(cfg).tokens, base.losses, strict=True):
        logits = np.float64(forward(base.params, batches.reshape(-1, S)))[:, :-1]
        targets = batches.reshape(-1, S)[:, 1:, None]
        nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets, -1)[..., 0]
        assert nll.mean() == pytest.approx(loss, abs=0.1)  # without each window's last target


def test_every_run_starts_from_the_base_and_has_a_curve_in_each_domain(found, cfg):
    assert methods(found) == [FULL, FEW, MANY, LORA]
    for method in methods(found):
        for domain in run.DOMAINS:
            for (seed,), group in (
                found.select("loss", method=method, domain=domain).by("seed").items()
            ):
                assert [row.step for row in group.rows] == [0, 2, 4] and seed in (0, 1)
                assert group.rows[0].value == before(found, domain)
                assert group.rows[2].value != group.rows[0].value
    F = 24  # 8/3 of 8 in whole eights
    weights = 2 * 256 * 8 + 4 * 64 + 3 * 8 * F + 3 * 8
    adapters = 2 * (4 * (8 + 8) + 3 * (8 + F))
    for method, size in ((FULL, weights), (MANY, weights), (LORA, adapters)):
        assert found.select("trainable", method=method).values() == [size]
    ends = {method: after(found, method, NEW, END) for method in methods(found)}
    assert len({losses[0] for losses in ends.values()}) == 4


def test_early_stopping_reads_its_own_text_and_the_others_judge(cfg):
    losses = {0: (1.0, 5.0, 5.0), 2: (1.5, 4.0, 4.2), 4: (1.7, 3.0, 4.1), 6: (2.0, 2.5, 4.3)}
    curve = [(step, np.array(values)) for step, values in losses.items()]
    patient = dataclasses.replace(cfg, patience=1)
    rows = run.run_rows(patient, {"method": FULL}, 7, curve)
    base = run.loss_rows({"method": BASE}, None, 0, losses[0])
    of = Results(study="s", config={"num_steps": 6}, rows=(*base, *rows))
    assert of.select("best_step").values() == [4] and of.select("stopped_at").values() == [6]
    assert after(of, FULL, NEW) == {7: 3.0} and after(of, FULL, NEW, END) == {7: 2.5}
    assert forgetting(of, FULL) == {7: pytest.approx(0.7)}
    assert forgetting(of, FULL, END) == {7: pytest.approx(1.0)}


def made_up(ends, best=2):
    """Results as of a run. ends: {method: {domain: (loss at the stop, loss at the end)}}."""
    cfg = dataclasses.replace(TINY, num_seeds=5)
    rows = [
        Row({"method": BASE, "domain": d}, None, 0, "loss", loss, "nats/token")
        for d, loss in ((OLD, 1.0), (NEW, 4.0), (STOPPING, 4.0))
    ]
    for method, by_domain in ends.items():
        at = {"method": method}
        rows.append(Row(at, None, None, "trainable", 100.0, "parameters"))
        for seed in range(5):
            wobble = 0.001 * math.sin(seed + len(method))
            for domain, (stop, end) in by_domain.items():
                for step, loss in ((0, 1.0), (best, stop), (4, end)):
                    named = {**at, "domain": domain}
                    rows.append(Row(named, seed, step, "loss", loss + wobble * step, "nats/token"))
            rows.append(Row(at, seed, None, "best_step", float(best), "steps"))
            rows.append(Row(at, seed, None, "stopped_at", 4.0, "steps"))
    return Results(study="domain_shift", config=to_dict(cfg), rows=tuple(rows))


def test_verdicts_when_all_is_as_claimed():
    results = made_up(
        {
            FULL: {NEW: (2.0, 2.2), OLD: (2.0, 2.5)},
            FEW: {NEW: (2.01, 2.2), OLD: (1.3, 1.5)},
            MANY: {NEW: (2.1, 2.2), OLD: (1.1, 1.2)},
            LORA: {NEW: (2.2, 2.3), OLD: (1.6, 1.8)},
        }
    )
    assert [claim.verdict for claim in claims(results)] == [SUPPORTED] * 11
    # e^-2 of the base's perplexity is left, on the old domain it is e^1 times it
    assert claims(results)[0].evidence.startswith("0.135")
    assert claims(results)[1].evidence.startswith("2.7")
    assert all(figure.svg().startswith("<svg") for figure in plot(results))
    [table] = tables(results)
    assert [row[0] for row in table.rows] == [BASE, FULL, FEW, MANY, LORA]
    assert table.rows[0][3:5] == ["54.60", "2.72"]  # e^4 and e


def test_verdicts_when_the_opposite_holds():
    results = made_up(
        {
            FULL: {NEW: (3.8, 3.7), OLD: (1.5, 1.4)},
            FEW: {NEW: (3.9, 3.8), OLD: (1.6, 1.4)},
            MANY: {NEW: (3.7, 3.7), OLD: (1.7, 1.4)},
            LORA: {NEW: (3.95, 3.8), OLD: (1.55, 1.4)},
        }
    )
    assert [claim.verdict for claim in claims(results)] == [NOT_SUPPORTED] * 11


@pytest.mark.parametrize("scale", ["small", "default", "full"])
def test_scales_are_configs_and_cells_hold_them(scale):
    cfg = apply_overrides(study.Config(scale=scale), study.SCALES.get(scale, {}))
    assert all(from_dict(study.Config, cell["config"]) == cfg for cell in study.cells(cfg))


@pytest.mark.parametrize(
    "override, message",
    [
        ({"old_rows": "4,1"}, "old_rows=.* rising"),
        ({"old_rows": "4"}, "two or more"),
        ({"old_rows": "1,8"}, "below batch_size=8"),
        ({"num_test_modules": 5}, "must leave some of the 7"),
        ({"num_steps": 55}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), override)
