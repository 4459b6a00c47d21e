"""A run without room for its step: refused before the first one, or explained where memory ends."""

import pathlib
import shutil
import subprocess
import sys

import jax
import job_runs
import numpy as np
import pytest

from jaxlm.analysis.hlo import compiled_bytes
from jaxlm.core.config import apply_overrides
from jaxlm.io.host_memory import free_bytes
from jaxlm.jobs import preflight
from jaxlm.jobs.setup import backends_of, layout_of
from jaxlm.models import kinds
from jaxlm.models.backends import BACKENDS
from jaxlm.nn.linear import linear
from jaxlm.train import estimates
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values, place_program

SMALL = {
    "model.d_model": 32, "model.context_length": 32, "model.vocab_size": 64, "data.batch_size": 64,
    "train.steps_per_call": 1,
}  # fmt: skip


def placed(**overrides):
    """The arguments of `preflight.has_room`, but the limit."""
    cfg = apply_overrides(RunConfig(), SMALL | overrides)
    layout = layout_of(cfg, kinds.param_specs(cfg.model))
    backends = backends_of(cfg, layout)
    token_bytes = np.ones(cfg.model.vocab_size, np.int32)
    program = place_program(cfg, token_bytes, layout, hyper_values(cfg), **backends.options)
    return cfg, layout, program, backends.attention


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({"d_model": 65536, "num_layers": 4000}, ["blocks/w_up", "[4000,", "65536,", "32]"]),
        ({"num_layers": 10**9}, ["blocks/w_up", "[1000000000,", "16,", "32]"]),
        ({"kind": "gru", "num_layers": 10**9}, ["blocks/kernel", "[1000000000,", "16,", "3,"]),
    ],
)
def test_a_run_whose_state_alone_is_too_large_leaves_nothing_behind(
    launch, config, tmp_path, fields, weight
):
    huge = [f"--config.model.{name}={value}" for name, value in fields.items()]
    outcome = launch(config, f"--workdir={tmp_path}/run", *huge)
    assert outcome.code == 2 and outcome.out == ""
    lines = outcome.err.splitlines()
    assert lines[0].startswith("launch.py: this run does not fit: its weights and their optimizer")
    assert any(line.split()[:4] == weight for line in lines)
    assert any(line.startswith("by our count: ") for line in lines)
    assert lines[-1].startswith("nothing near it fits: ")
    assert not list(tmp_path.iterdir())


def test_what_decides_is_the_compiled_step(monkeypatch, capsys):
    """A byte more or less than it needs; it is compiled once."""
    run = placed()
    sizes = preflight.compile_step(run[0], run[2]).memory_analysis()
    asked = []

    class Compiled:
        def memory_analysis(self):
            asked.append(1)
            return sizes

    monkeypatch.setattr(preflight, "compile_step", lambda cfg, program: Compiled())
    needed = compiled_bytes(sizes)
    assert preflight.has_room(*run, needed)
    assert capsys.readouterr().err == "" and asked
    assert not preflight.has_room(*run, needed - 1)
    err = capsys.readouterr().err
    assert err.startswith("launch.py: this run does not fit: a step takes ")
    assert "\ndoes not fit: " in err
    assert "\nwould fit with --config.model.remat=" in err


def test_a_run_with_room_to_spare_is_not_compiled(monkeypatch):
    def fail(*args):
        raise AssertionError("not needed")

    monkeypatch.setattr(preflight, "compile_step", fail)
    run = placed()
    assert preflight.has_room(*run, 2**40)
    assert preflight.has_room(*run, None)
    monkeypatch.setattr(preflight.plan, "held_by", fail)  # far below, nothing is traced either
    assert preflight.has_room(*run, 2**40)


@pytest.mark.parametrize(
    ("attention", "overrides"),
    [
        ("plain", {}),
        ("plain", {"model.num_heads": 16, "model.head_dim": 4, "model.context_length": 256}),
        ("split", {"model.context_length": 256, "model.dropout": 0.1}),
        ("chunked", {"model.bias": True, "model.norm": "layer", "model.activation": "gelu"}),
        (None, {"model.kind": "lstm"}),
        (None, {"model.kind": "mlp"}),
        ("flash", {"model.qk_norm": True, "model.norm_placement": "post", "model.d_ff": 8}),
    ],
)
def test_what_is_taken_for_the_most_is_more_than_is_counted(attention, overrides):
    cfg, layout, program, _ = placed(**overrides)
    functions = {"linear": linear} | ({"attend": BACKENDS[attention]} if attention else {})
    layer = estimates.layer_of_device(cfg, layout, **functions)
    counted = estimates.held(cfg, layout, program.state, layer).total
    assert estimates.at_most(cfg, layout, program.state) > counted


def test_running_out_is_told_from_other_errors_and_explained(capsys):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nat")
    assert preflight.ran_out(error)
    assert not preflight.ran_out(jax.errors.JaxRuntimeError("INTERNAL: something else"))
    assert not preflight.ran_out(ValueError("RESOURCE_EXHAUSTED"))
    preflight.explain(error, pathlib.Path("runs/a"), *placed(), 2**40)
    lines = capsys.readouterr().err.splitlines()
    said = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."
    assert lines[0] == f"launch.py: out of memory: {said}"
    assert lines[-1].startswith("go on with: python launch.py --workdir=runs/a --config.")


def test_a_run_goes_on_with_what_a_plan_changes(launch, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    changes = ("--config.model.remat=full", "--config.train.num_microbatches=2")
    outcome = launch(f"--workdir={folder}", "--config.train.num_steps=56", *changes)
    assert outcome.code == 0, outcome.err
    assert "changed   model.remat: none -> full" in outcome.out
    assert "resumed   at step 48" in outcome.out


@pytest.mark.slow
def test_memory_that_ends_in_the_first_step_is_explained(launch, tmp_path):
    """The process may have 9 GiB of addresses, of which the kernel does not tell beforehand."""
    if (free_bytes() or 0) < 16 * 2**30:
        pytest.skip("needs 16 GiB of free memory")
    large = {"model.d_model": 512, "model.context_length": 512, "data.batch_size": 64}
    limit = 9 * 2**30
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v {limit >> 10} && exec "$@"', "bash"]
        + [sys.executable, job_runs.LAUNCH, f"--workdir={tmp_path}/run"]
        + [f"--config.{path}={value}" for path, value in large.items()],
        capture_output=True,
        text=True,
        env=launch.env,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("launch.py: out of memory: RESOURCE_EXHAUSTED: Out of memory all")
    assert f"\ngo on with: python launch.py --workdir={tmp_path}/run --config." in done.stderr
