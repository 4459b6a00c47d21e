"""Steps and evaluations that go wrong: what is said and kept, and what a rollback leaves."""

import errno
import json
import os
import threading
import types

import jax
import kept_programs
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from job_runs import records, state_bytes

from jaxlm.data.batches import batch_at
from jaxlm.io import checkpoints, compile_cache
from jaxlm.io.checkpoints import CheckpointError
from jaxlm.io.workdir import load_config
from jaxlm.jobs import Launch, bad_steps, recorder, train
from jaxlm.jobs.recorder import Recorder
from jaxlm.optim.schedules import schedule_table
from jaxlm.train.config import RunConfig
from jaxlm.train.program import hyper_values

ALONE = types.SimpleNamespace(coordinator=None, num_processes=None, process_id=None)
SHORT = {"train.sample_every": "none", "train.sample_tokens": "0"}
BACK = SHORT | {"train.on_nonfinite": "rollback", "train.rollback_steps": "4"}


@pytest.fixture(scope="module", autouse=True)
def _runs_find_the_programs_of_those_before(tmp_path_factory):
    """And on the disk, in JAX's own cache, what of them is the same program in another run."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}

    def use(values):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    use(wanted)
    with pytest.MonkeyPatch.context() as patch:
        kept_programs.keep_programs(patch.setattr)
        yield
    use(before)


@pytest.fixture
def run(launch, config, monkeypatch, tmp_path):
    """`run(name, overrides, poisoned, moved)` -> exit code; the run is in this process.

    poisoned: numbers of batches with a NaN in them. moved: number -> the batch that is read.
    surprise: in place of `batch_at`.
    """
    monkeypatch.setattr(compile_cache, "enable", lambda: None)
    monkeypatch.setattr(train, "write_run_report", lambda folder: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(launch.cwd))

    def start(name, overrides, poisoned=(), moved=lambda n: n, surprise=batch_at):
        def planted(split, seed, step, **options):
            batch = surprise(split, seed, moved(step), **options)
            bad = np.float32(np.nan if step in poisoned else 1)
            return batch.replace(weights=batch.weights * bad)

        monkeypatch.setattr(train, "batch_at", planted)
        monkeypatch.setattr(bad_steps, "batch_at", planted)
        path = config.removeprefix("--config=")
        return train.main(Launch(path, overrides, str(tmp_path / name), path, ALONE))

    return start


class Killed(BaseException):
    """The end of the process, as far as one that goes on can have it."""


@pytest.fixture
def quick(monkeypatch):
    """Without running a step op by op, which takes a while."""
    monkeypatch.setattr(bad_steps, "first_nonfinite", lambda *args: "not looked for")


def test_a_step_that_is_not_finite_is_explained_and_kept(run, tmp_path, capsys):
    single = SHORT | {"train.steps_per_call": "1", "optim.schedule": "constant"}
    single |= {"optim.name": "sgd", "model.dropout": "0"}  # it is run one operation after another
    assert run("a", single, poisoned={21}) == 1
    said = capsys.readouterr()
    assert "bad step  22: not finite: loss nan" in said.out
    assert "batch/weights has nan before the step" in said.out
    assert "it read batch 21, of documents 0 of the train split" in said.out
    assert said.err.count("\n") == 1 and "step 22: not finite" in said.err
    path, manifest = checkpoints.newest_good(tmp_path / "a/bad_steps")
    assert manifest["step"] == 21 and str(path) in said.out
    kept = manifest["extra"]
    assert kept["batch"] == 21 and len(kept["rows"]) == 4
    assert all(len(row["text"]) == 16 for row in kept["rows"])

    # The state that is kept is that of a run which ended there.
    assert run("b", single | {"train.num_steps": "21"}) == 0
    kept, ended = state_bytes(tmp_path / "a/bad_steps"), state_bytes(tmp_path / "b")
    same = [path for path in ended if not path.startswith("hypers/")]
    assert [path for path in same if kept[path] != ended[path]] == []


def test_a_rollback_passes_over_its_batches_and_no_more(run, quick, tmp_path, capsys):
    """It ends as a run that never had those batches, killed and gone on with or not."""
    assert run("a", BACK, poisoned={21}) == 0
    assert "rollback  to step 16; batches 16 to 21 are passed over" in capsys.readouterr().out
    assert run("b", SHORT, moved=lambda n: n + 6 * (n >= 16)) == 0
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    got, want = (records(tmp_path / name / "metrics.jsonl") for name in "ab")
    marked = [record for record in got if "passed_over" in record]
    assert [(r["step"], r.pop("passed_over")) for r in marked] == [(17, [16, 22])]
    assert got == want


# Before, and after, there is a checkpoint that tells of it.
@pytest.mark.parametrize("step", [pytest.param(24, marks=pytest.mark.slow), 40])
def test_a_rollback_survives_a_kill(run, quick, tmp_path, monkeypatch, step):
    validate = Recorder._validate

    def killed(self, at, state):
        if at == step and self.passed_over:
            raise Killed
        return validate(self, at, state)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_validate", killed)
        with pytest.raises(Killed):
            run("a", BACK, poisoned={21})
    assert run("a", BACK, poisoned={21}) == 0
    assert run("b", BACK, poisoned={21}) == 0
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab"]
    assert logs[0] == logs[1] and logs[0].count(b"passed_over") == 1
    saved = checkpoints.newest_good(tmp_path / "a")[1]["extra"]
    assert saved["passed_over"] == [[16, 22]]


def test_a_run_that_only_goes_back_ends(run, quick, tmp_path, capsys):
    limit = {"train.max_passed_over": "20"}
    assert run("a", BACK | limit, poisoned=set(range(21, 500))) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "train.max_passed_over=20" in err


def test_a_loss_that_jumps_is_rolled_back_as_well(run, tmp_path, capsys):
    """In batch 37 only newlines come next, which are rare; every number is finite."""
    watch = {"train.spike_sigmas": "1.5"}

    def surprising(split, seed, step, **options):
        batch = batch_at(split, seed, step, **options)
        return batch if step != 37 else batch.replace(targets=0 * batch.targets)

    assert run("a", BACK | watch, surprise=surprising) == 0
    out = capsys.readouterr().out
    assert "bad step  38: the loss jumps: loss" in out and "to step 32; batches 32 to 37" in out
    assert run("b", SHORT | watch, moved=lambda n: n + 6 * (n >= 32)) == 0
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    assert run("c", SHORT | watch | {"train.on_nonfinite": "skip"}, surprise=surprising) == 0
    marked = [r for r in records(tmp_path / "c/metrics.jsonl") if "spike" in r]
    assert [(r["step"], r["update_norm"]) for r in marked] == [(38, 0)]
    assert logged_updates(tmp_path / "c") == [*range(38), *range(37, 47)]


def logged_updates(folder):
    """By the learning rates that were logged: how many updates had been done before each step."""
    cfg = load_config(folder, RunConfig)
    table = schedule_table(cfg.optim.schedule, hyper_values(cfg), 48, rows=48)
    rates = [r["learning_rate"] for r in records(folder / "metrics.jsonl") if r["split"] == "train"]
    return [next(n for n, rate in table if rate == logged) for logged in rates]


def test_a_rollback_saves_before_it_deletes(run, quick, tmp_path, monkeypatch):
    """Back behind all checkpoints that are kept, and killed right then."""
    far = BACK | {"train.rollback_steps": "20", "train.keep_last": "1", "train.keep_best": "0"}
    roll_back = Recorder.roll_back

    def killed(self, step, state):
        roll_back(self, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "roll_back", killed)
        with pytest.raises(Killed):
            run("a", far, poisoned={37})
    path, manifest = checkpoints.newest_good(tmp_path / "a")
    assert (manifest["step"], manifest["extra"]["passed_over"]) == (16, [[16, 38]])
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    assert run("a", far, poisoned={37}) == 0
    assert run("b", SHORT, moved=lambda n: n + 22 * (n >= 16)) == 0
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    marked = [r for r in records(tmp_path / "a/metrics.jsonl") if "passed_over" in r]
    assert [(r["step"], r["passed_over"]) for r in marked] == [(17, [16, 38])]


def test_an_evaluation_that_fails_ends_no_training(run, tmp_path, monkeypatch, capsys):
    def fails(*args, **options):
        raise RuntimeError("out of\nmemory")

    whole = {"train.sample_tokens": "8"}
    assert run("a", whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "make_evaluator", lambda *args, **options: fails)
        patch.setattr(recorder, "generate", fails)
        assert run("b", whole) == 0
    out = capsys.readouterr().out
    assert "step 8: validation failed, training goes on: RuntimeError: out of memory" in out
    assert "step 48: sampling failed" in out and "no validation loss that is finite" in out
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b")
    logs = [records(tmp_path / name / "metrics.jsonl") for name in "ab"]
    assert logs[1] == [record for record in logs[0] if record["split"] == "train"]
    failed = [r for r in records(tmp_path / "b/timings.jsonl") if "failed" in r.get("event", "")]
    assert [r["step"] for r in failed if "validation" in r["event"]] == [8, 16, 24, 32, 40, 48]
    assert "val_loss" not in json.loads((tmp_path / "b/summary.json").read_text())


def test_a_checkpoint_that_could_not_be_written_ends_the_run_at_its_next_call(
    run, tmp_path, monkeypatch
):
    """Not at the next save, nor at the end: what is computed until then would be lost."""

    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def after_the_write(split, seed, step, **options):
        if step == 24:  # made while 17 to 24 are computed, the checkpoint of 16 being written
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()
        return batch_at(split, seed, step, **options)

    monkeypatch.setattr(checkpoints, "_hash_and_sync", full)
    every = {"train.eval_every": "48", "train.save_every": "16"}
    with pytest.raises(CheckpointError, match="step_00000016: not written: No space left"):
        run("a", SHORT | every, surprise=after_the_write)
    assert records(tmp_path / "a/metrics.jsonl")[-1]["step"] == 24


def test_a_checkpoint_is_whole_before_its_evaluation_is_recorded(run, tmp_path, monkeypatch):
    """Saving is begun first: an evaluation that ends the process leaves the step's checkpoint."""

    def ends(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "make_evaluator", lambda *args, **options: ends)
        with pytest.raises(Killed):
            run("a", SHORT | {"train.eval_every": "16"})
    assert checkpoints.newest_good(tmp_path / "a")[1]["step"] == 16
