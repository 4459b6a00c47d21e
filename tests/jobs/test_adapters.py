"""LoRA runs: from a base's folder to adapters, and back to a model that can be used."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from job_runs import assert_same_run, fingerprint, records

from jaxlm.core import params as params_lib
from jaxlm.core import trees
from jaxlm.data.batches import evaluation_batches
from jaxlm.evals.perplexity import make_evaluator
from jaxlm.io import checkpoints, frozen
from jaxlm.jobs import setup
from jaxlm.jobs.setup import open_run
from jaxlm.models import lora, transformer
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.train.calls import scan_apart, with_frozen
from jaxlm.train.config import RunConfig
from jaxlm.train.estimates import flops_per_token
from jaxlm.train.program import trained_specs
from jaxlm.train.state import TrainState

ADAPTERS = ("--config.lora.rank=4", "--config.lora.targets=all", "--config.optim.peak_lr=0.03")


@pytest.fixture(scope="module")
def other_text(text, tmp_path_factory):
    """The characters of the base's text in words that it has never seen."""
    rng = random.Random(1)
    words = ["tac", "eht", "tas", "noa", "tam", "dna", "nar", "gib", "god", "ot"]
    path = tmp_path_factory.mktemp("other") / "words.txt"
    path.write_text("".join(rng.choice(words) + rng.choice("  \n.") for _ in range(900)))
    assert set(path.read_text()) <= set(text.read_text())
    return path


@pytest.fixture(scope="module")
def adapted(launch, finished, other_text, tmp_path_factory):
    """(folder, what was printed) of a run of rank 4 on the base `finished`."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    outcome = launch(*adapt(finished, other_text, folder))
    assert outcome.code == 0, outcome.err
    return folder, outcome.out


def adapt(base, text, folder, *more):
    return [
        f"--config.train.init_from={base}",
        f"--config.data.path={text}",
        *ADAPTERS,
        *more,
        f"--workdir={folder}",
    ]


def test_adapters_make_the_base_better_on_the_new_text(finished, adapted):
    folder, printed = adapted
    # width 16, 2 heads of 8, d_ff 32, 1 layer, rank 4: q, k, v, o and up, down
    count = 4 * (4 * (16 + 16) + 2 * (16 + 32))
    assert f"adapters  {count:,} parameters trained: rank 4 on all, alpha 16" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_params"] == count

    run, base = open_run(folder), open_run(finished)
    data = setup.prepare_data(run.cfg, run.tokenizer)
    evaluate = make_evaluator(base.model, token_bytes=run.tokenizer.token_bytes)
    batches = list(
        evaluation_batches(data.validation, batch_size=8, context_length=16, mask_documents=False)
    )
    before, after = evaluate(base.params, batches), evaluate(run.params, batches)
    assert after["loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert after["loss"] < before["loss"] - 0.3


def test_the_other_jobs_use_merged_weights(launch, adapted):
    folder, _ = adapted
    outcome = launch("--job=evaluate", f"--workdir={folder}", "--output=json")
    assert outcome.code == 0, outcome.err
    (last,) = [r for r in records(folder / "metrics.jsonl") if r["step"] == 48][1:]
    assert json.loads(outcome.out)["loss"] == last["loss"]
    outcome = launch("--job=sample", f"--workdir={folder}", "--prompt=gib", "--num_tokens=9")
    assert outcome.code == 0 and outcome.out.startswith("gib")


def test_the_base_is_kept_once_and_as_it_was(finished, adapted):
    folder, _ = adapted
    base = open_run(finished)
    (kept,) = (folder / frozen.FOLDER).iterdir()
    assert kept.name == frozen.fingerprint(base.params)
    got = frozen.restore(folder, kept.name, params_lib.abstract_params(base.model.specs))
    for path, want in trees.flatten(base.params).items():
        assert trees.flatten(got)[path].tobytes() == want.tobytes()
    for step in (32, 48):
        manifest = checkpoints.read_manifest(checkpoints.step_dir(folder, step))
        assert manifest["extra"]["frozen"] == kept.name
        assert not [name for name in manifest["leaves"] if name.startswith("frozen")]
        assert "params/blocks/wq/lora_a" in manifest["leaves"]


@pytest.fixture(scope="module")
def broken_off(launch, finished, other_text, tmp_path_factory):
    """A run of adapters killed at step 32; its base's folder is gone."""
    home = tmp_path_factory.mktemp("broken")
    shutil.copytree(finished, home / "base")
    # The first time before it has a checkpoint: it starts from the base again.
    for crash in (("_log_steps", 8, True), ("_validate", 32, True)):
        outcome = launch(*adapt(home / "base", other_text, home / "run"), crash=crash)
        assert outcome.code == "crash", outcome
    shutil.rmtree(home / "base")
    return home / "run"


def test_a_killed_run_goes_on_with_its_own_copy_of_the_base(launch, broken_off, adapted, tmp_path):
    shutil.copytree(broken_off, tmp_path / "run")
    outcome = launch(f"--workdir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert "resumed   at step 32" in outcome.out
    assert_same_run(tmp_path / "run", fingerprint(adapted[0]))


@pytest.mark.parametrize("fate", ["missing", "others"])
def test_a_run_does_not_go_on_with_another_base(launch, broken_off, tmp_path, fate):
    folder = tmp_path / "run"
    shutil.copytree(broken_off, folder)
    (kept,) = (folder / frozen.FOLDER).iterdir()
    if fate == "others":
        specs = params_lib.abstract_params(open_run(folder).model.specs)
        other = frozen.save(folder, jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), specs))
        shutil.rmtree(kept)
        (folder / frozen.FOLDER / other).rename(kept)
    else:
        shutil.rmtree(kept)
    for args in ([], ["--job=sample"], ["--job=evaluate"]):
        assert_refused(
            launch(*args, f"--workdir={folder}"), "frozen weights of this run", kept.name
        )


def assert_refused(outcome, *parts):
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("launch.py: ")
    for part in parts:
        assert part in outcome.err


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--config.model.d_model=32"], ["train.init_from", "shape (1, 16), expected (1, 32)"]),
        (["--config.model.rope_theta=500"], ["train.init_from", "rope_theta: 10000.0 -> 500.0"]),
        (["--config.model.vocab_size=99"], ["--config.model.vocab_size=99"]),
        (["--config.lora.targets=w_q"], ["--config.lora.targets=w_q", "did you mean 'wq'"]),
        (["--config.lora.rank=0"], ["--config.lora.rank=0", "rank=0 must be at least 1"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_base_is_refused_before_a_folder_is_made(
    launch, finished, other_text, tmp_path, more, parts
):
    given = {arg.partition("=")[0] for arg in more}
    args = [
        arg
        for arg in adapt(finished, other_text, tmp_path / "run")
        if arg.partition("=")[0] not in given
    ]
    assert_refused(launch(*args, *more), *parts)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_not_there_is_refused(launch, config, other_text, tmp_path):
    folder = tmp_path / "run"
    outcome = launch(config, *adapt(tmp_path / "nothing", other_text, folder))
    assert_refused(outcome, "--config.train.init_from=", "holds no run")
    outcome = launch(config, "--config.lora.rank=4", f"--workdir={folder}")
    assert_refused(outcome, "--config.lora.rank=4", "--config.train.init_from=WORKDIR")
    assert not folder.exists()


def test_a_text_with_characters_the_base_does_not_know_is_refused(launch, finished, tmp_path):
    (tmp_path / "greek.txt").write_text("the cat sat on λ mat\n" * 99)
    outcome = launch(*adapt(finished, tmp_path / "greek.txt", tmp_path / "run"))
    assert_refused(outcome, "does not know 1 of the characters", "'λ'")
    assert not (tmp_path / "run").exists()


def test_both_scalings_are_trained_as_they_are_named(
    launch, finished, adapted, other_text, tmp_path
):
    """16 / 4 = 8 / sqrt(4): the same losses, up to the rounding of two programs."""
    scaling = ["--config.lora.scaling=alpha_over_sqrt_r", "--config.lora.alpha=8"]
    args = adapt(finished, other_text, tmp_path / "run", *scaling)
    assert launch(*args, crash=("_log_steps", 8, True)).code == "crash"
    got, want = (
        [r["loss"] for r in records(run / "metrics.jsonl") if r["split"] == "train"][:8]
        for run in (tmp_path / "run", adapted[0])
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_adapters_can_be_put_on_an_adapted_model(launch, adapted, other_text, tmp_path):
    fewer = [f"--config.train.{name}=8" for name in ("num_steps", "eval_every", "save_every")]
    outcome = launch(*adapt(adapted[0], other_text, tmp_path / "run", *fewer))
    assert outcome.code == 0, outcome.err
    (kept,) = (tmp_path / "run" / frozen.FOLDER).iterdir()
    assert kept.name == frozen.fingerprint(open_run(adapted[0]).params)


def test_flops_are_those_xla_counts():
    """A matrix without adapters takes no gradient: counting it would be 40 % too much here.

    XLA does not count the sums towards the embedding, which take no gradient either, and counts
    pointwise work: 1 % less in all.
    """
    model_cfg = TransformerConfig(
        vocab_size=64, context_length=16, num_layers=4, scan_unroll=4, d_model=64, num_heads=2,
        activation="relu",
    )  # fmt: skip
    cfg = RunConfig(model=model_cfg, lora=LoraConfig(rank=1, targets=("wq", "wv")))
    model = transformer.build(model_cfg)

    def loss(adapters, base, tokens):
        weights = lora.attach(base, adapters, {"lora_alpha": 1.0}, cfg.lora.scaling)
        return jnp.sum(jnp.square(model.forward(weights, tokens)))

    adapters, base = map(params_lib.abstract_params, (trained_specs(cfg, model.specs), model.specs))
    tokens = jax.ShapeDtypeStruct((32, 16), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(adapters, base, tokens).compile()
    counted = compiled.cost_analysis()["flops"]
    assert counted == pytest.approx(32 * 16 * flops_per_token(cfg).full, rel=0.03)


def test_the_step_overwrites_all_of_a_state_but_its_frozen_part():
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero, params={"w": jnp.ones(3)}, frozen={"w": jnp.full(3, 2.0)}, carry={},
        hypers={}, opt_state=(), key=jax.random.key(0),
    )  # fmt: skip

    def step(state, x):
        moved = {"w": state.params["w"] + x * state.frozen["w"]}
        return state.replace(step=state.step + 1, params=moved), {}

    run = with_frozen(jax.jit(scan_apart(step), donate_argnums=0))
    after, _ = run(state, jnp.arange(4.0))
    np.testing.assert_array_equal(after.params["w"], 1 + 2 * (0 + 1 + 2 + 3))
    assert state.params["w"].is_deleted()
    assert after.frozen["w"] is state.frozen["w"] and not state.frozen["w"].is_deleted()
