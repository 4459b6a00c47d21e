"""--launcher: the same command as a job of SLURM, or of this machine in the background.

A job that is preempted or runs out of time saves and is put back into the queue; started again, the
same command goes on from its checkpoint. submitit writes the batch script and the logs.
"""

import contextlib
import functools
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

from jaxlm.core.config import ConfigError
from jaxlm.jobs import Launch, study
from jaxlm.jobs.configs import launch_config
from jaxlm.jobs.sweep import read_sweep

LAUNCHERS = ("slurm", "local")
FOLDER = "jobs"  # of a workdir: scripts and logs
WARNING_S = 120  # before the time is up, the job is told to save
MOST_STARTS = 1000
OWN_FLAGS = ("launcher", "partition", "minutes", "gpus", "cpus", "nodes", "array")


def main(launch: Launch) -> int:
    """Submits the command; prints the ids of the jobs and how to follow them.

    Raises:
      ConfigError: what would be refused when it runs, no workdir, submitit is missing, or the
        launcher is not here.
    """
    flags = launch.flags
    if flags.launcher not in LAUNCHERS:
        raise ConfigError(f"--launcher={flags.launcher}: expected one of {', '.join(LAUNCHERS)}")
    if flags.workdir is None:
        raise ConfigError(f"--launcher={flags.launcher} needs --workdir=FOLDER, to go on from")
    arguments = without_own_flags(sys.argv[1:])
    commands = [arguments]
    if flags.sweep is not None:
        points = read_sweep(launch).points
        if flags.array:
            commands = [[*arguments, f"--sweep_index={number}"] for number in range(len(points))]
    elif flags.array:
        raise ConfigError("--array: of which sweep? give --sweep")
    elif flags.experiment is None:
        launch_config(launch)
    elif flags.experiment != study.ALL:
        study.study_config(study.open_study(flags.experiment), launch)
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise ConfigError(
            f"--launcher={flags.launcher} needs submitit: pip install -e '.[slurm]'"
        ) from None
    folder = pathlib.Path(flags.workdir).absolute() / FOLDER
    is_new = not folder.exists()
    try:
        # Each start goes on from where the last one was: as often as it takes.
        executor = submitit.AutoExecutor(
            folder=folder, cluster=flags.launcher, slurm_max_num_timeout=MOST_STARTS
        )
        executor.update_parameters(**parameters(flags))
        # submitit prints what it then raises.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(Command(command, flags.nodes)) for command in commands]
    except (RuntimeError, OSError, FailedJobError) as error:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is kept where something else is in it
                folder.parent.rmdir()
        raise ConfigError(f"--launcher={flags.launcher}: {reason_of(error)}") from None
    for job, command in zip(jobs, commands, strict=True):
        print(f"job {job.job_id}  launch.py {' '.join(command)}")
        print(f"    log    {job.paths.stdout}")
    if flags.launcher == "slurm":
        ids = ",".join(job.job_id for job in jobs)
        print(f"    state  squeue -j {ids}        end  scancel {ids}")
    return 0


def reason_of(error: Exception) -> str:
    """One line of it; of many, as sbatch writes them, the last sums them up."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:300] if lines else "it failed and did not say why"


def parameters(flags: Any) -> dict[str, Any]:
    """What submitit is told."""
    common = {
        "name": "jaxlm",
        "timeout_min": flags.minutes,
        "nodes": flags.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": flags.cpus,
        "gpus_per_node": flags.gpus,
    }
    if flags.launcher == "slurm":
        common |= {"slurm_partition": flags.partition, "slurm_signal_delay_s": WARNING_S}
    return {name: value for name, value in common.items() if value is not None}


class Command:
    """The command inside a job, in the folder from which it was submitted."""

    def __init__(self, arguments: list[str], nodes: int):
        self.arguments, self.folder = arguments, os.getcwd()
        self.script = str(pathlib.Path(sys.argv[0]).resolve())
        if nodes > 1:
            self.arguments = [*arguments, "--coordinator=auto"]
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        command = [sys.executable, self.script, *self.arguments]
        # SLURM's warning goes to every process of the job; the run is told by `checkpoint`.
        ignore = functools.partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
        self._process = subprocess.Popen(command, cwd=self.folder, preexec_fn=ignore)
        code = self._process.wait()
        if code:
            raise RuntimeError(f"launch.py ended with {code}; its last lines are in the log")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the job is put back into the queue: the run saves and ends."""
        import submitit

        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(self._process.pid, signal.SIGTERM)
                # Not Popen's own wait: this handler may have interrupted one, which holds its lock.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        again = Command.__new__(Command)
        again.__dict__ |= self.__dict__ | {"_process": None}
        return submitit.helpers.DelayedSubmission(again)


def without_own_flags(arguments: list[str]) -> list[str]:
    """The command line of the job: what was given, less the flags that say where it runs."""
    kept, skip = [], False
    for argument in arguments:
        name, given, _ = argument.lstrip("-").partition("=")
        if skip:  # the value of "--gpus 1"
            skip = False
        elif argument.startswith("-") and name in (*OWN_FLAGS, "noarray"):
            skip = not given and name not in ("array", "noarray")
        else:
            kept.append(argument)
    return kept
