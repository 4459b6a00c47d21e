"""Run folders: unique names, a lock that dies with its owner, files that are whole or absent."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxlm.core.config import ConfigError
from jaxlm.io import workdir

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Optim:
    peak_lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Run:
    seed: int = 0
    num_steps: int = 100
    name: str | None = None
    optim: Optim = Optim()


def start(code: str, *args) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_new_run_dir_counts_on_from_the_highest(tmp_path):
    root = tmp_path / "runs"
    assert workdir.new_run_dir(root, "a") == root / "a-001"
    (root / "a-007").mkdir()
    (root / "a-b-009").mkdir()  # another name that starts the same
    assert workdir.new_run_dir(root, "a").name == "a-008"
    assert workdir.new_run_dir(root, "a-b").name == "a-b-010"


def test_a_folder_made_since_the_listing_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.os, "listdir", lambda _: [])
    made = [workdir.new_run_dir(tmp_path, "a").name for _ in range(3)]
    assert made == ["a-001", "a-002", "a-003"]


def test_two_processes_never_share_a_run_dir(tmp_path):
    code = (
        "import sys; from jaxlm.io.workdir import new_run_dir\n"
        "for _ in range(50): print(new_run_dir(sys.argv[1], 'a'))"
    )
    made = [p.communicate()[0].split() for p in [start(code, tmp_path), start(code, tmp_path)]]
    assert len(set(made[0] + made[1])) == 100


def test_new_run_dir_in_a_file_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="runs: cannot make a run folder"):
        workdir.new_run_dir(tmp_path / "runs", "a")


def test_lock_names_its_holder_and_dies_with_it(tmp_path):
    code = (
        "import sys, time; from jaxlm.io.workdir import WorkdirLock\n"
        "with WorkdirLock(sys.argv[1]): print('locked', flush=True); time.sleep(600)"
    )
    holder = start(code, tmp_path)
    try:
        assert holder.stdout.readline() == "locked\n"
        message = rf"{re.escape(f'--workdir={tmp_path}')}: in use by process {holder.pid} on host "
        message += r"\S+ since .* UTC"
        with pytest.raises(ConfigError, match=message), workdir.WorkdirLock(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with workdir.WorkdirLock(tmp_path):
        pass


def test_lock_is_exclusive_within_a_process_and_freed_by_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), workdir.WorkdirLock(tmp_path / "new"):
        with pytest.raises(ConfigError, match="in use by"), workdir.WorkdirLock(tmp_path / "new"):
            pass
        raise RuntimeError("inside")
    with workdir.WorkdirLock(tmp_path / "new"):
        pass


def test_lock_message_without_the_holders_text(tmp_path):
    with workdir.WorkdirLock(tmp_path):
        (tmp_path / "lock").write_text("{half")
        with pytest.raises(ConfigError, match="in use by another process"):
            workdir.WorkdirLock(tmp_path).__enter__()


def test_a_killed_writer_leaves_one_of_the_two_texts(tmp_path):
    code = (
        "import sys; from jaxlm.io.workdir import write_text_atomic\n"
        "for i in range(10**9):\n"
        "    write_text_atomic(sys.argv[1], 'ab'[i % 2] * 100_000)\n"
        "    if i == 1: print('twice', flush=True)"
    )
    path = tmp_path / "text"
    writer = start(code, path)
    writer.stdout.readline()
    seen = []
    while len(seen) < 60 or len(set(seen)) < 2:  # a disk may take long over each text
        text = path.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
        seen.append(text[0])
        assert writer.poll() is None
    writer.kill()
    writer.communicate()
    text = path.read_text()
    assert len(text) == 100_000 and len(set(text)) == 1


def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path):
    code = (
        "import resource, sys; from jaxlm.core.config import ConfigError\n"
        "from jaxlm.io.workdir import write_text_atomic\n"
        "write_text_atomic(sys.argv[1], 'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text_atomic(sys.argv[1], 'x' * 5000)\n"
        "except ConfigError as error: print(error)"
    )
    out, _ = start(code, tmp_path / "text").communicate()
    assert out == f"{tmp_path / 'text'}: cannot be written: File too large\n"
    assert [p.name for p in tmp_path.iterdir()] == ["text"]
    assert (tmp_path / "text").read_text() == "old"


def test_save_json_refuses_what_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        workdir.save_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_config_round_trip(tmp_path):
    config = Run(seed=3, name="é", optim=Optim(3e-4, (0.9, 0.99)))
    workdir.save_config(tmp_path, config)
    assert workdir.load_config(tmp_path, Run) == config
    assert workdir.load_config(tmp_path / "config.json", Run) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "not valid JSON"),
        ("[]", "expected"),
        ('{"format_version": 9, "config": {}}', "format_version 9, this version of jaxlm reads 1"),
        ('{"format_version": 1, "config": {"sed": 1}}', "did you mean 'seed'"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        workdir.load_config(tmp_path / "config.json", Run)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_check_same_run():
    saved = Run()
    free = {"num_steps"}
    assert workdir.check_same_run(saved, Run(), free) == []
    longer = dataclasses.replace(saved, num_steps=200)
    assert workdir.check_same_run(saved, longer, free) == ["num_steps: 100 -> 200"]
    other = dataclasses.replace(longer, seed=1, name="a\nb", optim=Optim(peak_lr=2e-3))
    with pytest.raises(ConfigError) as error:
        workdir.check_same_run(saved, other, free)
    message = str(error.value)
    assert "seed: 0 -> 1; name: None -> a b; optim.peak_lr: 0.001 -> 0.002" in message
    assert "num_steps" not in message and "\n" not in message


def test_saved_files_are_plain_json(tmp_path):
    workdir.save_config(tmp_path, Run())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["config"]["optim"]["betas"] == [0.9, 0.95]


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="file: File exists"),
        workdir.WorkdirLock(tmp_path / "file"),
    ):
        pass

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(ConfigError, match="this file system cannot lock: No locks available"),
        workdir.WorkdirLock(tmp_path / "run"),
    ):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_a_json_file_of_another_form_is_one_line(tmp_path):
    workdir.save_json(tmp_path / "x.json", {"step": -1})
    assert workdir.load_json(tmp_path / "x.json", {"step": int}) == {"step": -1}
    with pytest.raises(ConfigError, match=r"x\.json: step: expected text"):
        workdir.load_json(tmp_path / "x.json", {"step": str})
