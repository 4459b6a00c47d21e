"""The study of LoRA ranks: its texts, its rows against solo runs and by hand, and its verdicts."""

import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib
import subprocess
import sys
import sysconfig

import jax
import numpy as np
import pytest
from compiling import quick_jit

from experiments import library
from experiments import lora_rank as study
from experiments.lora_rank import readings, run
from experiments.lora_rank.readings import BASE, FULL, LORA, NEW, OLD, OVER_R, OVER_SQRT_R, SCALINGS
from experiments.texts import lane_batches
from jaxlm.analysis.claims import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from jaxlm.core import trees
from jaxlm.core.config import ConfigError, apply_overrides, from_dict, to_dict
from jaxlm.core.results import Results, Row
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.interop import pretrained
from jaxlm.models import lora, transformer
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import bpe_tokenizer
from jaxlm.tokenizers.hugging_face import write_tokenizer
from jaxlm.train.population import stack_hypers
from jaxlm.train.program import hyper_values, make_program

STEPS, EVERY, SEEDS, D = 6, 2, 2, 8
F = 24  # 8/3 of D in whole eights
TINY = apply_overrides(
    study.Config(),
    {
        "base.num_layers": 2,
        "base.d_model": D,
        "base.num_heads": 2,
        "base.context_length": 8,
        "base.batch_size": 4,
        "base.num_steps": 10,
        "base.eval_every": 5,
        "modules": ("bisect.py", "heapq.py", "keyword.py"),
        "num_validation_modules": 1,
        "targets": ("q+v", "all linear"),
        "both_scalings": ("all linear",),
        "other_lrs": (1e-3,),
        "ranks": (1, 2, 4),
        "num_seeds": SEEDS,
        "batch_size": 2,
        "num_steps": STEPS,
        "warmup_steps": 1,
        "eval_every": EVERY,
        "eval_batches": 2,
    },
)
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name="", **__: (
        COMPILED.append(fun_name) if event.endswith("backend_compile_duration") else None
    )
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What `compiling.quick_jit` is for a function, for the programs of populations."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    compile_fully = jax.stages.Lowered.compile

    def compile_quickly(lowered):
        return compile_fully(lowered, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compile_quickly)
        yield


def library_file(name):
    return (pathlib.Path(sysconfig.get_path("stdlib")) / name).read_bytes()


@pytest.fixture(scope="module")
def cfg():
    return run.resolve(TINY)


@pytest.fixture(scope="module")
def found(cfg):
    """The rows of all cells, as the launcher joins them."""
    COMPILED.clear()
    rows = [row for cell in study.cells(cfg) for row in run.run_cell(cell)]
    assert COMPILED.count("jit(population)") == len(study.cells(cfg)) == 4
    return Results(study="lora_rank", config=to_dict(cfg), rows=tuple(rows))


def test_the_hash_is_of_the_files_digests_in_order(cfg):
    digests = [hashlib.sha256(library_file(name)).digest() for name in TINY.modules]
    assert cfg.corpus_sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert run.resolve(cfg) == cfg
    turned = dataclasses.replace(TINY, modules=TINY.modules[::-1])
    assert run.resolve(turned).corpus_sha256 != cfg.corpus_sha256


def test_another_text_than_the_saved_one_is_refused_in_one_line(cfg):
    other = dataclasses.replace(cfg, corpus_sha256="0" * 64)
    for refuse in (lambda: run.resolve(other), lambda: run.new_domain(other)):
        with pytest.raises(ConfigError, match=r"^--config\.corpus_sha256=0+: .*another") as error:
            refuse()
        assert "\n" not in str(error.value) and cfg.corpus_sha256 in str(error.value)


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"--config\.modules: .* no text nowhere\.py"):
        run.resolve(dataclasses.replace(TINY, modules=("bisect.py", "nowhere.py")))


def test_the_default_modules_are_sorted_and_the_last_tenth_of_their_text_validates():
    assert list(library.MODULES) == sorted(set(library.MODULES))
    sizes = [len(library_file(name)) for name in library.MODULES]
    assert 1_000_000 < sum(sizes) < 3_000_000
    assert 0.05 < sum(sizes[-study.Config().num_validation_modules :]) / sum(sizes) < 0.15


def test_whole_files_validate_and_bytes_are_ids(cfg):
    text = run.new_domain(cfg)
    train, validation = (
        bytes(part.take(np.arange(part.num_tokens)).astype(np.uint8))
        for part in (text.train, text.validation)
    )
    assert train == library_file("bisect.py") + library_file("heapq.py")
    assert validation == library_file("keyword.py")


@pytest.mark.parametrize(
    "override, message",
    [
        ({"targets": "q+v,q+v"}, "one or more of"),
        ({"targets": "q+v,mlp"}, "one or more of"),
        ({"targets": "q+v,q+k+v"}, "both_scalings"),
        ({"other_lrs": "0.008"}, "must differ"),
        ({"ranks": "8,1,32"}, "rising"),
        ({"ranks": "1,2"}, "three or more"),
        ({"ranks": "0,1,2"}, "from 1 on"),
        ({"num_validation_modules": 3, "modules": "a.py,b.py,c.py"}, "leave some"),
        ({"num_steps": 55}, "multiple of eval_every"),
        ({"warmup_steps": 6000}, "warmup_steps=6000 must be at most num_steps="),
        ({"base.num_steps": 55}, "multiple of eval_every"),
        ({"num_seeds": 0}, "at least 1"),
    ],
)
def test_bad_configs_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(study.Config(), override)


@pytest.mark.parametrize("scale", sorted(study.SCALES))
def test_scales_are_configs_and_cells_hold_them(scale):
    scaled = apply_overrides(study.Config(scale=scale), study.SCALES[scale])
    cells = study.cells(scaled)
    assert len(cells) == len(scaled.targets) + 2
    assert all(from_dict(study.Config, cell["config"]) == scaled for cell in cells)
    assert scaled.num_seeds >= (3 if scale == "small" else 5)


def test_trainable_parameters_are_exact_for_each_rank(found):
    q, down = 2 * D, D + F  # inputs + outputs; k, v and o are as q, gate and up as down
    for rank in TINY.ranks:
        for targets, each_layer in (("q+v", 2 * q), ("all linear", 4 * q + 3 * down)):
            of = readings.adapted(found, targets, rank)
            assert readings.num_trainable(of) == 2 * rank * each_layer
    weights = 2 * 256 * D + 2 * (4 * D * D + 3 * D * F + 2 * D) + D
    full = found.select(method=FULL)
    assert readings.num_trainable(full) == weights and readings.share_trainable(found, full) == 1


def test_every_run_has_a_curve_from_the_base_on_in_both_domains(found):
    steps = [0, 2, 4, 6]
    runs = [
        *(readings.adapted(found, "q+v", rank) for rank in TINY.ranks),
        *(readings.adapted(found, "all linear", r, s) for r in TINY.ranks for s in SCALINGS),
        *(readings.adapted(found, "all linear", 4, s, TINY.other_lrs[0]) for s in SCALINGS),
        found.select(method=FULL),
    ]
    for of in runs:
        for seed in range(SEEDS):
            for domain in (NEW, OLD):
                rows = [r for r in of.select("loss", domain=domain).rows if r.seed == seed]
                assert [row.step for row in rows] == steps
                assert rows[0].value == readings.of_base(found, domain=domain)
                assert len({row.value for row in rows}) == len(steps)
                for metric in ("perplexity", "bits_per_byte"):
                    more = [r for r in of.select(metric, domain=domain).rows if r.seed == seed]
                    losses = np.array([row.value for row in rows])
                    want = np.exp(losses) if metric == "perplexity" else losses / math.log(2)
                    np.testing.assert_allclose([r.value for r in more], want, rtol=1e-6)
    assert len(found.select("loss", domain=NEW).rows) == len(runs) * SEEDS * len(steps)


def test_the_alpha_that_stands_for_alpha_over_sqrt_r_gives_the_run_of_that_scaling(cfg, found):
    """The lane of rank 2 out of 4 against a run alone, of rank 2 and the other scaling."""
    base, seed, rank = run.open_base(cfg), 1, 2
    chosen = LoraConfig(
        rank=rank, alpha=cfg.alpha, targets=(lora.ALL,), scaling="alpha_over_sqrt_r"
    )
    alone = run.adaptation(cfg, base, seed, cfg.lora_lr, chosen)
    program = make_program(alone, base.token_bytes)
    batches = lane_batches(
        run.new_domain(cfg).train, [seed], batch_size=cfg.batch_size, context_length=8
    )
    state = quick_jit(lambda: program.init(seed, hyper_values(alone)))()
    state = state.replace(frozen=base.params)
    step = quick_jit(program.step)
    for n in range(STEPS):
        state, _ = step(state, jax.tree.map(lambda x: x[0, 0], batches(n, n + 1)))
    old, new = (jax.tree.map(lambda x, d=d: x[d], run.validation(cfg)) for d in (run.OLD, run.NEW))
    evaluate = quick_jit(program.evaluate)
    of = readings.adapted(found, "all linear", rank, OVER_SQRT_R)
    other = readings.adapted(found, "all linear", rank, OVER_R)
    for domain, batch in ((OLD, old), (NEW, new)):
        want = float(evaluate(state, batch)["loss"].compute())
        assert at_end(of, domain, seed) == pytest.approx(want, rel=1e-5)
        assert at_end(other, domain, seed) != pytest.approx(want, rel=1e-5)


def at_end(of, domain, seed):
    [value] = [r.value for r in of.select("loss", domain=domain, step=STEPS).rows if r.seed == seed]
    return value


def test_both_scalings_are_one_at_rank_1(found):
    one, other = (readings.adapted(found, "all linear", 1, scaling) for scaling in SCALINGS)
    assert [r[1:] for r in one.rows] == [r[1:] for r in other.rows]
    usual, slower = (
        readings.adapted(found, "all linear", 4, peak_lr=rate)
        for rate in (TINY.lora_lr, *TINY.other_lrs)
    )
    assert at_end(usual, NEW, 0) < at_end(slower, NEW, 0)  # six steps at a higher rate


@pytest.mark.slow
def test_a_base_trained_again_is_the_same_to_the_last_bit(cfg, found):
    """As another process would: nothing that was kept in memory is used."""
    before = run.open_base(cfg)
    for cached in (run.open_base, run.tokenizer_of, run.the_plays):
        cached.cache_clear()
    assert tuple(run.run_cell(study.cells(cfg)[0])) == found.select(method=BASE).rows
    after = run.open_base(cfg)
    assert after is not before
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


@pytest.mark.parametrize(
    "losses, best, stopped",
    [
        ([3.0, 2.0, 1.0], 3, 3),
        ([3.0, 2.0, 2.0, 1.9995, 2.5, 1.0], 2, 5),  # three in a row that gain too little
        ([5.0, 5.0, 5.0], 0, 3),  # never better than the base
    ],
)
def test_early_stopping_keeps_the_best_and_says_where_it_stops(cfg, losses, best, stopped):
    base = dataclasses.replace(cfg, patience=3, min_delta=0.001)
    curve = [
        (10 * (n + 1), run.Scores(np.array([2.0 + n, x]), np.array([1.0, 1.0])))
        for n, x in enumerate(losses)
    ]
    start = run.Base(None, {}, np.ones(1), [(9, run.Scores(np.array([1.5, 4.0]), np.ones(2)))])
    rows = run.adaptation_rows(base, start, {"method": FULL}, 7, curve)
    of = Results(study="s", config={}, rows=tuple(rows))
    assert of.select("best_step").values() == [10 * best]
    assert of.select("stopped_at").values() == [10 * stopped]
    assert readings.at_best(of).values() == [4.0 if best == 0 else losses[best - 1]]
    assert of.select("forgetting").values() == [0.0 if best == 0 else 2.0 + best - 1 - 1.5]
    assert {row.seed for row in rows} == {7}


def test_a_wrong_merge_is_seen(cfg, found):
    """By products and logits; the right one is within the tolerance."""
    base, chosen = run.open_base(cfg), LoraConfig(rank=2, alpha=6.0, targets=(lora.ALL,))
    rng = np.random.default_rng(0)
    specs = lora.adapter_specs(run.transformer.param_specs(base.model), chosen)
    # Of rank 4, of which 2 columns count: those masked must not be in the sum.
    wide = lora.adapter_specs(
        run.transformer.param_specs(base.model), dataclasses.replace(chosen, rank=4)
    )
    for each in (specs, wide):
        adapters = run.trees.map_with_path(
            lambda _, s: np.float32(0.3 * rng.normal(size=s.shape)), each
        )
        right = run.merged_differences(cfg, base, adapters, chosen)
        assert 0 < right["merged_product"] <= study.MERGED_TOLERANCE
        assert 0 <= right["merged_logits"] <= study.MERGED_TOLERANCE
        hypers = lora.hyper_values(chosen)
        wrong = lora.merge(base.params, adapters, hypers | {"lora_alpha": 6.01}, chosen.scaling)
        assert run.product_difference(cfg, base, adapters, wrong, chosen) > 1e-4
        assert run.logits_difference(cfg, base, adapters, wrong, hypers) > 1e-4
    for metric in ("merged_product", "merged_logits"):
        values = found.select(metric).values()
        assert len(values) == 3 * len(TINY.ranks) + 2 and max(values) <= study.MERGED_TOLERANCE


def test_base_and_merged_weights_run_the_same_program(cfg):
    base, merged = run.measure(dataclasses.replace(cfg, timed_calls=3))
    assert base["sha256_of_the_program"] == merged["sha256_of_the_program"]
    assert base["median_ratio_to_base"] == 1 and merged["median_ms"] > 0


def test_all_lanes_of_one_program_have_the_names_of_its_hypers(cfg):
    base = run.open_base(cfg)
    runs = [run.adaptation(cfg, base, s, 1e-3, LoraConfig(rank=r)) for s in (0, 1) for r in (1, 4)]
    assert {len(v) for v in stack_hypers(map(hyper_values, runs)).values()} == {4}


# A base of others.


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny random Llama and a tokenizer of bytes and one merge."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = bpe_tokenizer([(b"t", b"h")], special_tokens=["<|endoftext|>"])
    model = TransformerConfig(
        vocab_size=tokenizer.vocab_size, num_layers=2, d_model=D, num_heads=2, rope_layout="half"
    )
    rng = np.random.default_rng(0)

    def draw(path, spec):
        return np.float32(rng.normal("norm" in path, 0.3, spec.shape))

    params = trees.map_with_path(draw, transformer.param_specs(model))
    pretrained.save_weights(folder, model, params)
    write_tokenizer(folder, tokenizer, {})
    return folder, model, params, tokenizer


def imported(source, **changes):
    base = dataclasses.replace(TINY.base, source=str(source), **changes)
    settings = {"base": base, "ranks": (1, 2, 4), "both_scalings": (), "other_lrs": ()}
    return run.resolve(dataclasses.replace(TINY, **settings, num_seeds=1, merged_samples=3))


def test_a_base_of_others_is_adapted_to_the_plays_one_rank_at_a_time(source):
    folder, model, params, tokenizer = source
    cfg = imported(folder)
    cells = study.cells(cfg)
    assert [(c["targets"], c["rank"]) for c in cells[1:-1]] == [
        (targets, rank) for targets in ("q+v", "all linear") for rank in (1, 2, 4)
    ]
    text = run.new_domain(cfg)
    ids = text.train.take(np.arange(200))
    corpus = "".join(itertools.chain.from_iterable(open_corpus(DataConfig()).documents()))
    assert corpus.startswith(tokenizer.decode(ids[:-3]))
    [old, new] = (
        jax.tree.map(lambda x, d=d: x[d], run.validation(cfg)) for d in (run.OLD, run.NEW)
    )
    base = run.open_base(cfg)
    for domain, batches in ((OLD, old), (NEW, new)):
        rows = [batches.tokens[i] for i in range(cfg.eval_batches)]
        logits = [
            quick_jit(functools.partial(transformer.forward, cfg=model))(params, r) for r in rows
        ]
        nll = [
            -jax.nn.log_softmax(x)[np.arange(2)[:, None], np.arange(8), batches.targets[i]]
            for i, x in enumerate(logits)
        ]
        want = float(np.mean(nll))
        got = Results(study="lora_rank", config=to_dict(cfg), rows=tuple(run.base_rows(cfg)))
        assert readings.of_base(got, "loss", domain) == pytest.approx(want, rel=1e-5)
    assert base.model == dataclasses.replace(base.model, context_length=8)
    rows = run.run_cell(cells[1])
    assert {row.fields["rank"] for row in rows} == {1}
    curve = [row for row in rows if row.metric == "loss" and row.fields["domain"] == NEW]
    assert [row.step for row in curve] == [0, 2, 4, 6] and len({row.value for row in curve}) == 4


def test_a_base_held_in_bfloat16_is_one_of_the_rounded_weights(source, tmp_path):
    """Adapters, sums and gains stay float32, so nothing but the rounding changes."""
    folder, model, params, tokenizer = source
    cfg = imported(folder, dtype="bfloat16")
    by_hand = trees.map_with_path(
        lambda path, w: w if "norm" in path else w.astype(jax.numpy.bfloat16).astype(np.float32),
        params,
    )
    pretrained.save_weights(tmp_path, model, by_hand)
    write_tokenizer(tmp_path, tokenizer, {})
    got, want = (
        [row for cell in cells[:2] for row in run.run_cell(cell) if "merged" not in row.metric]
        for cells in (study.cells(cfg), study.cells(imported(tmp_path)))
    )
    assert [row[1:4] for row in got] == [row[1:4] for row in want]
    for mine, theirs in zip(got, want, strict=True):  # two programs: sums in another order
        assert mine.value == pytest.approx(theirs.value, rel=1e-6, abs=2e-6)
    exact = run.run_cell(study.cells(imported(folder))[0])
    assert max(abs(a.value - b.value) for a, b in zip(exact, got, strict=False)) > 1e-4
    base = run.open_base(cfg)
    frozen = run.held(base.params, base.model, "bfloat16")
    sizes = {path: w.dtype.itemsize for path, w in trees.flatten(frozen).items()}
    assert {sizes[path] for path in sizes if "norm" not in path} == {2}
    assert {sizes[path] for path in sizes if "norm" in path} == {4}


def test_a_source_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"--config\.base\.source=nowhere: is no Hugging Face"):
        imported("nowhere")


def test_one_target_set_will_do():
    one = {"targets": ["all linear"], "both_scalings": [], "other_lrs": []}
    losses = {key: loss for key, loss in GOOD.items() if key[0] == "all linear"}
    results = made_up(losses=losses, settings=one)
    assert len(study.claims(results)) == 4
    assert {figure.name for figure in study.plot(results)} == {
        *("perplexity_by_rank", "perplexity_by_share", "forgetting_by_rank", "learning_curves")
    }
    [table] = study.tables(results)
    assert [row[3] for row in table.rows] == ["", 1, 8, 32, ""]


def test_its_figures_speak_of_its_own_texts():
    assert readings.names_of({"base": {"source": None}}) == ("byte", "Python", "the plays")
    assert readings.names_of({"base": {"source": "x"}}) == ("token", "the plays", "Python")


# Verdicts, on numbers made up.

USUAL, SLOWER, FASTER = 0.008, 0.004, 0.016
SETTINGS = {
    "ranks": [1, 8, 32],
    "targets": ["q+v", "all linear"],
    "num_seeds": 3,
    "other_lrs": [SLOWER, FASTER],
}
GOOD = {
    ("q+v", 1): 2.9,
    ("q+v", 8): 2.7,
    ("q+v", 32): 2.6,
    ("all linear", 1): 2.4,
    ("all linear", 8): 2.1,
    ("all linear", 32): 2.05,
}


def made_up(
    losses=GOOD, full=2.0, base=4.0, forgotten=(0.3, 0.9), sqrt_32=None, merged=1e-7, settings=None
):
    """Results with these losses at the best evaluation, and a little noise over three seeds.

    sqrt_32: {rate: loss} of rank 32 on all linear layers with alpha/sqrt(r).
    """
    sqrt_32 = {USUAL: 2.0, SLOWER: 2.0, FASTER: 2.5, **(sqrt_32 or {})}
    config = to_dict(
        apply_overrides(study.Config(), SETTINGS | {"num_steps": 20} | (settings or {}))
    )
    rows = [Row({"method": BASE}, None, None, "parameters", 1000, "parameters")]

    def scores(fields, seed, step, new, old, prefix):
        for domain, loss in ((NEW, new), (OLD, old)):
            named = {**fields, "domain": domain}
            for metric, value in (("loss", loss), ("perplexity", math.exp(loss))):
                rows.append(Row(named, seed, step, prefix + metric, value, "1"))
            rows.append(Row(named, seed, step, f"{prefix}bits_per_byte", loss / 0.69, "1"))

    def adapted(fields, loss, forgot, trainable):
        rows.append(Row(fields, None, None, "trainable", trainable, "parameters"))
        noises = (-0.001, 0.0, 0.001)
        for seed, noise in enumerate(noises[::-1] if fields.get("targets") == "q+v" else noises):
            for step in (0, 10, 20):
                scores(fields, seed, step, base + (loss - base) * step / 20, 2.0, "")
            scores(fields, seed, 20, loss + noise * (1 + loss), 1.5 + forgot, "best_")
            rows.append(Row(fields, seed, 20, "forgetting", forgot + noise, "1"))
            rows.append(Row(fields, seed, None, "best_step", 20, "steps"))
            rows.append(Row(fields, seed, None, "stopped_at", 10 if seed else 20, "steps"))

    scores({"method": BASE}, None, 0, base, 1.5, "best_")
    for (targets, rank), loss in losses.items():
        settings = [s for s in readings.settings(config, targets) if s.rank == rank]
        for setting in settings:
            fields = {"method": LORA, "targets": targets, **setting._asdict()}
            sqrt = (setting.scaling, rank) == (OVER_SQRT_R, 32)
            value = sqrt_32[setting.peak_lr] if sqrt else loss
            adapted(fields, value, forgotten[0], 10 * rank)
            for metric in ("merged_product", "merged_logits"):
                rows.append(Row(fields, 0, 20, metric, merged, "1"))
    adapted({"method": FULL}, full, forgotten[1], 1000)
    return Results(study="lora_rank", config=config, rows=tuple(rows))


GAIN, WIDER, MORE_RANK, FORGETS, MERGED, SQRT, SQRT_AT_BEST = range(7)


@pytest.mark.parametrize(
    "changes, claim, verdict",
    [
        ({}, GAIN, SUPPORTED),
        ({"full": 1.0}, GAIN, NOT_SUPPORTED),  # 1.9 of 3 nats
        ({}, WIDER, SUPPORTED),
        ({"losses": GOOD | {("q+v", 8): 2.0}}, WIDER, NOT_SUPPORTED),  # at one rank of three
        ({"losses": GOOD | {("q+v", 8): 2.1}}, WIDER, INCONCLUSIVE),
        ({}, MORE_RANK, SUPPORTED),
        ({"losses": GOOD | {("all linear", 32): 1.5}}, MORE_RANK, NOT_SUPPORTED),  # returns rise
        ({"losses": GOOD | {("all linear", 32): 2.2}}, MORE_RANK, NOT_SUPPORTED),  # more harms
        ({}, FORGETS, SUPPORTED),
        ({"forgotten": (0.9, 0.3)}, FORGETS, NOT_SUPPORTED),
        ({}, MERGED, SUPPORTED),
        ({"merged": 2e-5}, MERGED, NOT_SUPPORTED),
        ({"merged": math.nan}, MERGED, NOT_SUPPORTED),
        ({}, SQRT, SUPPORTED),
        ({"sqrt_32": {USUAL: 2.2}}, SQRT, NOT_SUPPORTED),
        ({"sqrt_32": {USUAL: math.nan}}, SQRT, INCONCLUSIVE),
        ({"sqrt_32": {USUAL: 2.2}}, SQRT_AT_BEST, SUPPORTED),  # at the slower rate
        ({"sqrt_32": {USUAL: math.nan}}, SQRT_AT_BEST, SUPPORTED),
        ({"sqrt_32": {USUAL: 2.2, SLOWER: 2.1}}, SQRT_AT_BEST, NOT_SUPPORTED),
    ],
)
def test_verdicts_follow_the_numbers(changes, claim, verdict):
    claims = study.claims(made_up(**changes))
    assert len(claims) == 7 and claims[claim].verdict == verdict, claims[claim]


def test_the_share_of_the_gain_is_by_seed():
    """(4 - 2.1) / (4 - 2), and its noise: 0.0031 * 1.9 / 2 against 0.0030 of the other."""
    claim = study.claims(made_up())[GAIN]
    assert "0.95" in claim.evidence and "over 3 seeds; claimed above 0.8" in claim.evidence


def test_the_table_has_a_row_for_each_setting_and_both_references():
    [table] = study.tables(made_up())
    cells = {tuple(row[:4]): row for row in table.rows}
    assert len(cells) == len(table.rows) == 1 + 3 + 6 + 4 + 1
    row = dict(zip(table.header, cells["q+v", OVER_R, USUAL, 8], strict=True))
    assert row["weights"] == 80 and row["%"] == 8
    assert row["best step"] == 20 and row["stopped at"] == pytest.approx(40 / 3)
    assert row["perplexity"].replace("\N{NO-BREAK SPACE}", " ").startswith("14.88 [")  # exp(2.7)


def test_everything_is_drawn():
    figures = study.plot(made_up())
    assert len({figure.name for figure in figures}) == 6
    assert all(figure.svg().startswith("<svg") for figure in figures)
    curves = next(figure for figure in figures if figure.name == "learning_curves")
    assert "ends 12 of 18 runs" in curves.caption  # seeds 1 and 2 stop at 10


def test_claims_and_figures_need_no_jax():
    root = pathlib.Path(__file__).parents[2]
    code = "import sys, experiments.lora_rank; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
