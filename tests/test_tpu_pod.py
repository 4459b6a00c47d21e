"""The script for TPU slices, with a gcloud that copies and starts on this machine."""

import os
import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "configs" / "tpu_pod.sh"

# scp FLAGS FILE NAME:PATH, and ssh NAME FLAGS --command=COMMAND, in the worker's home.
GCLOUD = """#!/bin/bash
set -e
printf '%s\n' "$@" -- >> {folder}/asked
verb=$4
shift 4
for last; do before=$given given=$last; done
if [ "$verb" = scp ]; then cp -r "$before" {folder}/home/"${{last#*:}}"
else cd {folder}/home && bash -c "${{last#--command=}}"
fi
"""
# The code that runs, and its arguments.
PYTHON = """#!/bin/bash
cat "$1" > {folder}/ran
printf '%s\n' "$@" > {folder}/arguments
"""


@pytest.fixture
def folder(tmp_path):
    """With a checkout in `code`, and the home of the worker in `home`."""
    for name in ("code/configs", "code/.git", "code/runs", "home", "bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "code/configs")
    for name in (".git/config", "runs/old", "launch.py", "dropped.py"):
        (tmp_path / "code" / name).write_text("first")
    for name, text in (("gcloud", GCLOUD), ("python3", PYTHON), ("pip", "#!/bin/bash\n")):
        (tmp_path / "bin" / name).write_text(text.format(folder=tmp_path))
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def run(folder, *arguments):
    env = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    command = ["bash", folder / "code/configs/tpu_pod.sh", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_every_worker_gets_the_folder_and_the_same_command(folder):
    given = ["--workdir=/mnt/run", "--config.train.sample_prompt=a b"]
    done = run(folder, "pod", "us-x", *given)
    assert done.returncode == 0, done.stderr
    asked = [lines.splitlines() for lines in (folder / "asked").read_text().split("\n--\n")[:2]]
    for lines, verb in zip(asked, ("scp", "ssh"), strict=True):
        assert lines[:4] == ["compute", "tpus", "tpu-vm", verb]
        assert {"--zone=us-x", "--worker=all"} <= set(lines)
    assert asked[0][-1].startswith("pod:") and asked[1][4] == "pod"
    arguments = (folder / "arguments").read_text().splitlines()
    assert arguments == ["launch.py", "--coordinator=auto", *given]
    assert not (folder / "home/jaxlm/.git").exists() and not (folder / "home/jaxlm/runs").exists()


def test_a_second_launch_runs_the_code_of_then(folder):
    for code in ("first", "second"):
        (folder / "code/launch.py").write_text(code)
        assert run(folder, "pod", "us-x", "--workdir=/mnt/run").returncode == 0
        assert (folder / "ran").read_text() == code
        (folder / "code/dropped.py").unlink(missing_ok=True)
    assert not (folder / "home/jaxlm/dropped.py").exists()


@pytest.mark.parametrize("flag", ["--config=configs/plays.py", "--workdir=runs/a"])
def test_without_a_shared_folder_it_says_how_it_is_used(folder, flag):
    done = run(folder, "pod", "us-x", flag)
    assert done.returncode == 2 and "usage:" in done.stderr
    assert not (folder / "asked").exists()
