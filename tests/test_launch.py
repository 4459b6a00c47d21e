"""The launcher: help that needs no library, and the flags as a person types them."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

HEAVY = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax", "matplotlib", "rich", "tiktoken")
# Runs launch.py as __main__, then tells which of the heavy packages were imported.
PROBE = f"""
import runpy, sys
sys.argv = ["launch.py", *sys.argv[1:]]
code = 0
try:
    runpy.run_path("launch.py", run_name="__main__")
except SystemExit as stop:
    code = stop.code
print("IMPORTED", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""


@pytest.mark.parametrize("flag", ["--help", "-h", "--job=trian"])
def test_what_needs_no_library_imports_none(flag):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, flag], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1].split() == ["IMPORTED"]
    assert done.returncode == (2 if flag == "--job=trian" else 0), done.stderr


def test_help_names_every_flag_and_job():
    done = subprocess.run(
        [sys.executable, "launch.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    for word in ("train:", "evaluate:", "sample:", "--job", "--config", "--workdir", "--prompt"):
        assert word in done.stdout
    for word in ("--config.data.path=FILE", "repeat run a", "--num_tokens", "--top_p"):
        assert word in done.stdout
    assert "Traceback" not in done.stdout
