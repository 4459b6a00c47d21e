"""The notice of Google's machines, from a metadata server on this one."""

import logging
import signal
import threading
import time

import pytest
from job_runs import TIMEOUT_S, Launcher, fingerprint, without_length
from metadata_server import metadata_server

from jaxlm.io import checkpoints
from jaxlm.jobs import preemption
from jaxlm.jobs.signals import stop_requests


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with metadata_server() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        yield server


def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("key", "value"),
    [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")],
)
def test_a_notice_counts_as_sigterm_and_is_told_once(server, key, value):
    told = []
    with stop_requests(told.append) as came:
        until(lambda: set(server.asked) == set(server.values))
        server["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"  # which a run survives
        time.sleep(0.1)
        assert came() is None and not told
        server[key] = value
        until(came)
        assert came() is signal.SIGTERM
        assert told == [
            f"the machine is taken away ({key} {value}): finishing this call and saving"
        ]


def test_the_signal_of_the_shutdown_that_follows_does_not_end_the_process(server):
    told = []
    with stop_requests(told.append) as came:
        server["preempted"] = "TRUE"
        until(came)
        signal.raise_signal(signal.SIGTERM)  # a second one would leave by os._exit
        until(lambda: len(told) == 2)
        assert came() is signal.SIGTERM and told[1].startswith("SIGTERM: finishing")


def test_what_was_announced_before_the_run_began(server):
    """Old maintenance has ended the run before this one; a preemption is always near."""
    server["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    with stop_requests(lambda line: None) as came:
        until(lambda: server.asked.count("maintenance-event") == 2)
        assert came() is None
        server["preempted"] = "TRUE"
        until(came)
    with stop_requests(lambda line: None) as came:
        until(came)


@pytest.mark.parametrize("broken", [404, 503, "silent", "foreign", "garbage"])
def test_a_server_that_fails_is_not_heard_of_and_asked_again(
    server, broken, monkeypatch, caplog, capfd
):
    monkeypatch.setattr(preemption, "AGAIN_S", 0.01)
    server.broken = broken
    caplog.set_level(logging.DEBUG, logger="jaxlm.jobs.preemption")
    told = []
    with stop_requests(told.append) as came:
        until(lambda: len(caplog.records) > 4)
        assert came() is None and not told
        server.broken = None
        server["preempted"] = "TRUE"
        until(came)
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert capfd.readouterr().out == ""


def test_no_server_at_all_is_no_trouble(monkeypatch, capfd):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setattr(preemption, "AGAIN_S", TIMEOUT_S)
    started = time.monotonic()
    with stop_requests(print) as came:
        assert came() is None
    assert time.monotonic() - started < preemption.AGAIN_S
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("product", "variables", "host"),
    [
        (None, {}, None),
        ("Standard PC (Q35 + ICH9, 2009)\n", {}, None),
        ("Google Compute Engine\n", {}, "metadata.google.internal"),
        ("Google Compute Engine\n", {"GCE_METADATA_HOST": "a:1"}, "a:1"),
        (None, {"GCE_METADATA_HOST": "a:1"}, "a:1"),
        ("Google Compute Engine\n", {"SLURM_JOB_ID": "7"}, None),
    ],
)
def test_only_a_machine_of_google_is_asked(tmp_path, monkeypatch, product, variables, host):
    for name in ("GCE_METADATA_HOST", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(preemption, "PRODUCT", tmp_path / "product_name")
    if product:
        preemption.PRODUCT.write_text(product)
    assert preemption.metadata_host() == host
    if host is None:
        before = set(threading.enumerate())  # those of another test may be about to end
        with preemption.watched(print):
            assert set(threading.enumerate()) <= before


def test_a_run_that_is_taken_away_goes_on_as_if_it_had_not_been(launch, server, config, tmp_path):
    launch = Launcher(launch.cwd)  # one that knows the server
    launch.env |= {"GCE_METADATA_HOST": server.host}
    folder, metrics = tmp_path / "run", tmp_path / "run/metrics.jsonl"
    steps = {"save_every": 400_000, "eval_every": 400_000, "log_every": 1000}
    steps |= {"sample_every": 400_000, "sample_tokens": 0}
    flags = [config, "--config.optim.schedule=constant"]
    flags += [f"--config.train.{name}={value}" for name, value in steps.items()]
    endless = "--config.train.num_steps=800000"
    with launch.start(*flags, endless, f"--workdir={folder}") as process:
        until(lambda: metrics.exists() and metrics.stat().st_size)
        server["preempted"] = "TRUE"
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (143, "")
    assert "the machine is taken away (preempted TRUE)" in out and "the run is saved" in out
    assert f"python launch.py --workdir={folder}\n" in out
    step = checkpoints.newest_good(folder)[1]["step"]
    assert step and step % 8 == 0

    server["preempted"] = "FALSE"
    end = f"--config.train.num_steps={step + 16}"
    assert launch(end, f"--workdir={folder}").code == 0
    assert launch(end, *flags, f"--workdir={tmp_path}/unbroken").code == 0
    launch.close()
    assert without_length(fingerprint(folder)) == without_length(fingerprint(tmp_path / "unbroken"))
