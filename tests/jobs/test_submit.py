"""--launcher: the command as a job of this machine, or of a SLURM that the test starts."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types

import pytest
from job_runs import TIMEOUT_S, free_ports

from jaxlm.core.config import ConfigError
from jaxlm.jobs import Launch, submit

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    "--config.model.num_layers=1",
    "--config.model.d_model=16",
    "--config.model.num_heads=2",
    "--config.model.context_length=16",
    "--config.train.num_steps=1000000",
    "--config.train.save_every=10",
    "--config.train.eval_every=1000000",
    "--config.train.sample_tokens=0",
    "--config.optim.name=sgd",
    "--config.optim.schedule=constant",
]
NO_FLAGS = {"sweep": None, "experiment": None, "array": False, "workdir": "runs/a", "nodes": 1}


def test_flags_of_the_launcher_do_not_reach_the_job():
    given = ["--launcher=slurm", "--config=a.py", "--gpus", "2", "--noarray", "--array"]
    given += ["--config.train.num_steps=5", "-minutes=9", "--nodes=2", "--workdir=w"]
    kept = ["--config=a.py", "--config.train.num_steps=5", "--workdir=w"]
    assert submit.without_own_flags(given) == kept


def test_only_what_is_given_is_asked_of_the_cluster():
    flags = types.SimpleNamespace(
        launcher="slurm", minutes=90, nodes=2, cpus=None, gpus=8, partition="big"
    )
    asked = submit.parameters(flags)
    assert asked["timeout_min"] == 90 and asked["slurm_partition"] == "big"
    assert asked["gpus_per_node"] == 8 and "cpus_per_task" not in asked
    flags.launcher = "local"
    assert not any(name.startswith("slurm") for name in submit.parameters(flags))


@pytest.mark.parametrize(
    ("flags", "overrides", "message"),
    [
        ({"launcher": "pbs"}, {}, "expected one of slurm, local"),
        ({"launcher": "local", "workdir": None}, {}, "needs --workdir"),
        ({"launcher": "local", "array": True}, {}, "--array: of which sweep"),
        ({"launcher": "local"}, {"model.num_layer": "2"}, "did you mean 'num_layers'"),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_submitted(flags, overrides, message):
    flags = types.SimpleNamespace(**NO_FLAGS | flags)
    launch = Launch(None, overrides, flags.workdir, str(ROOT / "configs" / "plays.py"), flags)
    with pytest.raises(ConfigError, match=message):
        submit.main(launch)


def test_what_sbatch_says_is_one_line(tmp_path):
    """A cluster whose controller does not answer; nothing of the submission stays."""
    pytest.importorskip("submitit")
    said = ["error: no status", "error: Batch job submission failed: connect failure"]
    for name, lines in (("sbatch", said), ("srun", [])):
        says = "".join(f"echo 'sbatch: {line}' >&2\n" for line in lines)
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}exit 1\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "launch.py", "--launcher=slurm", f"--workdir={tmp_path}/new/run"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"launch.py: --launcher=slurm: sbatch: {said[1]}\n"
    assert not (tmp_path / "new" / "run").exists()


def launch(workdir, text, *flags, **env):
    """Submits a tiny run that never ends by itself; returns what was printed."""
    command = [sys.executable, "launch.py", f"--workdir={workdir}", f"--config.data.path={text}"]
    printed = workdir.with_name("printed")  # a pipe would stay open as long as the job
    with open(printed, "w") as out:
        done = subprocess.run(
            [*command, *TINY, *flags], cwd=ROOT, env=os.environ | env, stdout=out, stderr=out
        )
    assert done.returncode == 0, printed.read_text()
    return printed.read_text()


def wait_until(condition, run):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, log(run)
        time.sleep(0.3)


def log(workdir):
    return "".join(path.read_text() for path in (workdir / "jobs").glob("*.out"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question\n" * 500)
    return path


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="finds processes by /proc")
def test_a_local_job_that_is_preempted_saves_and_goes_on(tmp_path, text):
    run = tmp_path / "run"
    out = launch(run, text, "--launcher=local", "--minutes=30")
    controller = int(out.split()[1])
    try:
        wait_until(lambda: "step_" in str(list(run.glob("checkpoints/*"))), run)
        [task] = children(controller)
        os.kill(task, signal.SIGUSR2)  # as SLURM does before the time is up
        wait_until(lambda: "resumed   at step" in log(run), run)
        assert "stopped   by SIGTERM; the run is saved" in log(run)
    finally:
        family = [controller]
        for pid in family:
            family += children(pid)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


SLURM = """
ClusterName=jaxlm
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MessageTimeout=90
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmUser=root
SlurmdUser=root
SwitchType=switch/none
SchedulerType=sched/builtin
SelectType=select/linear
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={nodes[0]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName={nodes[1]} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm():
    """The environment of a cluster of this machine alone as two nodes, started for the test.

    In a folder with a short name: a path of its sockets has 108 bytes at most.
    """
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))) or os.getuid():
        pytest.skip("needs slurm-wlm and root")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    (folder / "state").mkdir()
    host = socket.gethostname().split(".")[0]
    # The first one's name must be found: there the processes meet.
    nodes = [host, f"{host}-2"]
    places = {"host": host, "nodes": nodes, "folder": folder, "ports": free_ports(3)}
    config = SLURM.format(cpus=os.cpu_count(), **places)
    (folder / "slurm.conf").write_text(config)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid"}
    munge |= {"log-file": "log", "seed-file": "seed"}
    files = [f"--{flag}={folder}/munge.{name}" for flag, name in munge.items()]
    try:
        daemons = [["munged", "--force", *files], ["slurmctld", "-c"]]
        daemons += [["slurmd", "-c", "-N", node] for node in nodes]
        for command in daemons:
            subprocess.run(command, check=True, env=os.environ | env, capture_output=True)
            time.sleep(1)
        yield env
    finally:
        ends = [folder / f"{node}.pid" for node in nodes]
        ends += [folder / "slurmctld.pid", folder / "munge.pid"]
        for file in ends:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 30
        while any(file.exists() for file in ends) and time.monotonic() < deadline:
            time.sleep(0.1)  # they write their state once more
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_of_slurm_saves_before_its_time_is_up_and_is_queued_again(
    tmp_path, text, slurm, nodes
):
    """With a process on each node, which find each other by what SLURM tells them."""

    def ask(*command):
        done = subprocess.run(
            command, env=os.environ | slurm, capture_output=True, text=True, check=True
        )
        return done.stdout

    run = tmp_path / "run"
    flags = ("--launcher=slurm", "--partition=debug", "--minutes=30", f"--nodes={nodes}")
    out = launch(run, text, *flags, **slurm)
    job = out.split()[1]
    assert f"scancel {job}" in out
    try:
        wait_until(lambda: "step_" in str(list(run.glob("checkpoints/*"))), run)
        assert ask("squeue", "-h", "-o", "%i %T %D").split() == [job, "RUNNING", str(nodes)]
        assert ("devices   2 of 2: data 2" in log(run)) == (nodes == 2)
        ask("scancel", "--signal=USR2", job)
        wait_until(lambda: "PENDING" in ask("squeue", "-h", "-o", "%T"), run)
        assert "stopped   by SIGTERM; the run is saved" in log(run), log(run)
        # SLURM holds a job that is queued again for two minutes.
        wait_until(lambda: "resumed   at step" in log(run), run)
    finally:
        ask("scancel", job)
        wait_until(lambda: not ask("squeue", "-h"), run)
