"""The compile cache: what it counts, where it lies, and that it starts no backend."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxlm.io import compile_cache
from jaxlm.io.compile_cache import CompileCounts

ROOT = pathlib.Path(__file__).parents[2]

CHILD = """
import json, sys, jax, jax.numpy as jnp
from jax._src import xla_bridge
from jaxlm.io import compile_cache
path = compile_cache.enable()
compile_cache.enable()  # counts nothing twice
started = xla_bridge.backends_are_initialized()
x = jax.device_put(3.0)
before = compile_cache.counts()
for n in (2, 3):
    assert jax.jit(lambda x: jnp.sin(x) ** n)(x) is not None
made = compile_cache.counts() - before
print(json.dumps([str(path), started, made.programs, made.from_cache, made.seconds]))
"""


def run_child(cache_home) -> list:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache_home)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    path, started, programs, from_cache, seconds = run_child(tmp_path)
    assert not started
    assert (programs, from_cache) == (2, 0) and seconds > 0
    path = pathlib.Path(path)
    assert path.parent == tmp_path / "jaxlm" / "xla"
    assert path.name.startswith(f"{importlib.metadata.version('jaxlib')}-cpu-")
    assert any(path.iterdir())
    assert run_child(tmp_path)[1:4] == [False, 2, 2]


def test_a_folder_that_cannot_be_made_turns_the_cache_off(tmp_path):
    (tmp_path / "jaxlm").write_text("in the way")
    assert run_child(tmp_path)[:4] == ["None", False, 2, 0]


def test_other_cpu_features_have_another_folder(monkeypatch):
    here = compile_cache.default_dir()
    monkeypatch.setattr(compile_cache, "_cpu_features", lambda: "x86_64 sse2")
    assert compile_cache.default_dir().parent == here.parent
    assert compile_cache.default_dir() != here


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (CompileCounts(3, 2, 5.24), "5.2 s (2 programs from cache, 1 compiled)"),
        (CompileCounts(1, 1, 0.04), "0.0 s (1 program from cache, 0 compiled)"),
    ],
)
def test_counts_read_well_and_subtract(counts, text):
    assert str(counts) == text
    assert counts - CompileCounts(1, 1, 0.0) == CompileCounts(
        counts.programs - 1, counts.from_cache - 1, counts.seconds
    )
