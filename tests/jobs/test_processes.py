"""Several processes as one run: flags, rows, and real processes that are killed and resized."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from job_runs import TIMEOUT_S, free_ports
from metadata_server import metadata_server

from jaxlm.core import trees
from jaxlm.core.config import ConfigError
from jaxlm.io import checkpoints
from jaxlm.io.checkpoints import CheckpointError
from jaxlm.jobs import processes
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig
from jaxlm.train.layouts import MeshConfig, make_layout

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_processes": 2}, "--num_processes=2: give --coordinator"),
        ({"process_id": 0}, "--process_id=0: give --coordinator"),
        ({"coordinator": "a:1", "process_id": 0}, "--num_processes must be given"),
        ({"coordinator": "a:1"}, "--num_processes and --process_id must be given"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2: must be"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "expected HOST:PORT"),
        ({"coordinator": "auto", "num_processes": 2}, "leave --num_processes"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(flags, message):
    given = {"coordinator": None, "num_processes": None, "process_id": None} | flags
    with pytest.raises(ConfigError, match=message):
        processes.join(types.SimpleNamespace(**given))


def test_alone_nothing_is_waited_for(tmp_path):
    processes.wait_for_all("x")
    assert processes.is_writer() and processes.largest(15) == 15
    with processes.own_folder(tmp_path) as own:
        assert own == tmp_path
    with pytest.raises(OSError, match="full"), processes.end_together():
        raise OSError("full")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("--config.data.path=x: no such barrier"), 2, "no such barrier"),
        (CheckpointError("step_30: not written: full"), 2, "step_30: not written: full"),
        (
            CheckpointError("step_30: not written: Timed out at barrier"),
            1,
            "process 0 of 2: another",
        ),
        (RuntimeError("Gloo all-reduce failed"), 1, "process 0 of 2: another one ended"),
        (RuntimeError("a fault of ours"), 1, "Traceback"),
    ],
)
def test_one_of_several_says_what_ended_it(error, code, said, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with processes.end_together():
        raise error
    assert ended == [code]
    assert said in capsys.readouterr().err


def test_alone_a_process_reads_every_row():
    specs = transformer.param_specs(TransformerConfig(vocab_size=8, num_layers=1, d_model=8))
    layout = make_layout(MeshConfig(data=1), specs, num_rows=6)
    assert layout.local_rows(6) == slice(0, 6)
    batches = {"tokens": np.zeros((2, 6, 3))}
    assert layout.place(batches, 6) is batches


# ---- real processes

CONFIG = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.context_length": 16,
    "data.batch_size": 8,
    "optim.name": "sgd",
    "optim.peak_lr": 0.1,
    "optim.schedule": "constant",
    "train.eval_batches": 1,
    "train.eval_every": 1_000_000,
    "train.save_every": 10,
    "train.sample_tokens": 0,
}


def start(workdir, text, number, num_steps, last=None):
    """Starts that many processes of one run; last: more environment of the last of them."""
    [port] = free_ports(1)
    config = CONFIG | {"train.num_steps": num_steps, "data.path": text}
    flags = [f"--workdir={workdir}", *(f"--config.{name}={v}" for name, v in config.items())]
    started = []
    for place in range(number):
        more = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={number}"]
        more = [*more, f"--process_id={place}"] if number > 1 else []
        command = [sys.executable, "launch.py", *flags, *more]
        env = os.environ | (last or {} if place == number - 1 else {})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    return started


def finish(started):
    for process in started:
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err[-2000:]


def end(*started):
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def newest(workdir):
    path, manifest = checkpoints.newest_good(workdir)
    shapes = manifest["leaves"].items()
    target = {n: jax.ShapeDtypeStruct(s["shape"], s["dtype"]) for n, s in shapes if "params" in n}
    prefix = "params/"
    params = {n.removeprefix(prefix): leaf for n, leaf in target.items() if n.startswith(prefix)}
    return manifest["step"], checkpoints.restore(path, trees.unflatten(params), part="params")


@pytest.mark.slow
def test_a_killed_run_of_two_goes_on_with_one_and_then_with_four(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 500)
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"

    first, second = start(run, text, 2, num_steps=1_000_000)
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (run / "checkpoints" / "step_00000020").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second.send_signal(signal.SIGKILL)
        out, err = first.communicate(timeout=TIMEOUT_S)  # a dead peer is noticed in bounded time
    finally:
        end(first, second)
    # In a checkpoint's barrier JAX learns of it at the same moment, and may be first to end it.
    assert first.returncode in (1, -signal.SIGABRT), err
    if first.returncode == 1:
        assert "process 0 of 2: another one ended or cannot be reached" in err
        assert "start all of them again" in err
    else:
        assert "another task died" in err
    assert "devices   2 of 2: data 2" in out
    done, _ = newest(run)
    assert done >= 20

    finish(start(run, text, 1, num_steps=done + 20))
    finish(start(run, text, 4, num_steps=done + 40))
    finish(start(unbroken, text, 1, num_steps=done + 40))
    (step, params), (same, wanted) = newest(run), newest(unbroken)
    assert step == same == done + 40
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, wanted)
    lines = [(w / "metrics.jsonl").read_text().count("\n") for w in (run, unbroken)]
    assert lines[0] == lines[1]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["signal", "notice"])
def test_one_that_is_asked_to_stop_stops_all(tmp_path, by):
    """By a signal, or by the metadata server of its machine, which no other process has."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("to be or not to be, that is the question\n" * 500)
    with metadata_server() as server:
        last = {"GCE_METADATA_HOST": server.host} if by == "notice" else None
        started = start(run, text, 2, num_steps=1_000_000, last=last)
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (run / "checkpoints" / "step_00000010").exists():
                assert time.monotonic() < deadline and started[0].poll() is None
                time.sleep(0.1)
            if by == "notice":
                server["preempted"] = "TRUE"
            else:
                started[1].send_signal(signal.SIGTERM)
            outputs = [process.communicate(timeout=TIMEOUT_S) for process in started]
        finally:
            end(*started)
    assert [process.returncode for process in started] == [143, 143], outputs
    assert "the run is saved" in outputs[0][0]
    assert newest(run)[0] >= 10  # written by both of them, at the same step
