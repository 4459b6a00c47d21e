"""Provenance: the commit of the code itself, and values that JSON can hold."""

import importlib.metadata
import json
import os
import subprocess
import sys

import jax
import pytest

from jaxlm.io import provenance


def git(folder, *args):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *args], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("1\n")
    git(tmp_path, "add", "pkg")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_commit_and_changes(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_state(checkout / "pkg") == {"commit": commit, "dirty": False}
    (checkout / "new.py").write_text("")  # not tracked: not a change of the code
    assert provenance.git_state(checkout / "pkg") == {"commit": commit, "dirty": False}
    (checkout / "pkg" / "a.py").write_text("2\n")
    assert provenance.git_state(checkout / "pkg") == {"commit": commit, "dirty": True}


def test_the_index_is_left_alone(checkout):
    """As it is while the user's own git holds it."""
    os.utime(checkout / "pkg" / "a.py", (1, 1))  # what would be renewed
    index = (checkout / ".git" / "index").read_bytes()
    assert provenance.git_state(checkout / "pkg")["dirty"] is False
    assert (checkout / ".git" / "index").read_bytes() == index


def test_an_installed_copy_is_not_of_the_checkout_it_lies_in(checkout):
    (checkout / "venv" / "pkg").mkdir(parents=True)
    (checkout / "venv" / "pkg" / "a.py").write_text("1\n")
    assert provenance.git_state(checkout / "venv" / "pkg") == {"commit": None, "dirty": None}


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(checkout / "pkg") == {"commit": None, "dirty": None}


def test_collect(monkeypatch):
    jax.devices()  # reads XLA_FLAGS, and ends the process if it does not know one
    monkeypatch.setattr(sys, "argv", ["/some/where/launch.py", "--config.seed=3"])
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    collected = provenance.collect(seed=3)
    assert json.loads(json.dumps(collected)) == collected
    assert collected["command"] == ["launch.py", "--config.seed=3"]
    assert (collected["seed"], collected["xla_flags"]) == (3, "--xla_one=1")
    assert collected["packages"]["jax"] == jax.__version__
    assert collected["packages"]["optax"] == importlib.metadata.version("optax")
    assert collected["device_count"] == jax.device_count()
    assert collected["backend"] == jax.devices()[0].platform


def test_what_earlier_starts_had_otherwise_is_kept_once(monkeypatch, tmp_path):
    path, now = tmp_path / "provenance.json", {}
    monkeypatch.setattr(provenance, "collect", lambda seed: {"seed": seed, **now})
    for commit in ("a", "a", "b", "b", "c", "b"):
        now["commit"] = commit
        provenance.save(path, 3)
    starts = [{"seed": 3, "commit": c} for c in "abc"]
    assert json.loads(path.read_text()) == {**starts[1], "earlier": starts}
    provenance.save(path, 3, goes_on=False)  # from the first step again: nothing of them is left
    assert json.loads(path.read_text()) == starts[1]
    path.write_text("{")  # damaged
    provenance.save(path, 3)
    assert json.loads(path.read_text()) == starts[1]


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance.collect()["packages"]) == ["numpy"]
