"""The script for TPU slices, with a gcloud that only writes down what it is asked."""

import os
import pathlib
import subprocess

SCRIPT = pathlib.Path(__file__).parents[1] / "configs" / "tpu_pod.sh"


def run(tmp_path, *arguments):
    fake = tmp_path / "gcloud"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "--" >> {tmp_path}/asked\n')
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(["bash", SCRIPT, *arguments], env=env, capture_output=True, text=True)


def test_every_worker_gets_the_folder_and_the_same_command(tmp_path):
    given = ["--workdir=/mnt/run", "--config.train.sample_prompt=a b"]
    assert run(tmp_path, "pod", "us-x", *given).returncode == 0
    copy, start, _ = (tmp_path / "asked").read_text().split("\n--\n")
    assert copy.splitlines()[:7] == [
        "compute",
        "tpus",
        "tpu-vm",
        "scp",
        "--zone=us-x",
        "--worker=all",
        "--recurse",
    ]
    assert copy.splitlines()[-1] == "pod:jaxlm"
    assert "ssh\npod\n--zone=us-x\n--worker=all\n--command=" in start
    flags = r"--coordinator=auto --workdir=/mnt/run --config.train.sample_prompt=a\ b"
    assert f"python3 launch.py {flags}" in start


def test_without_a_shared_folder_it_says_how_it_is_used(tmp_path):
    done = run(tmp_path, "pod", "us-x", "--config=configs/plays.py")
    assert done.returncode == 2 and "usage:" in done.stderr
    assert not (tmp_path / "asked").exists()
