"""The house's floors: imports go down only, and only some rooms touch the world outside.

Read from the sources by `ast`, so that a violation inside a function counts too.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

LEVELS = {
    "core": 0,
    **dict.fromkeys(("nn", "kernels", "tokenizers", "data", "optim"), 1),
    "models": 2,
    **dict.fromkeys(("objectives", "decode", "evals", "analysis"), 3),
    "train": 4,
    **dict.fromkeys(("interop", "io", "reports"), 5),
    **dict.fromkeys(("jobs", "experiments"), 6),
}

# Rooms that may do everything outside a pure function, and rooms that may read and write files.
OUTSIDE_ROOMS = ("io", "reports", "jobs")
FILE_ROOMS = ("data", "tokenizers", "interop", "experiments")
TIMING_ROOMS = ("experiments",)  # for a study's `measure`; its rows are repeated bit for bit

FILE_CALLS = ("open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink")
CLOCK_AND_PROCESS_MODULES = ("time", "datetime", "subprocess", "socket", "multiprocessing")


def room_of(module: str) -> str | None:
    """ "jaxlm.nn.rope" -> "nn"; None for what is neither jaxlm's nor an experiment."""
    parts = module.split(".")
    if parts[0] == "experiments":
        return "experiments"
    return parts[1] if parts[0] == "jaxlm" and len(parts) > 1 else None


def imported_modules(tree: ast.Module, module: str) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names.append(origin)
            if room_of(origin) is None:  # `from jaxlm import train`
                names += [f"{origin}.{alias.name}" for alias in node.names]
    return names


def import_violations(path: str, source: str) -> list[str]:
    """`path` is relative to the root: "jaxlm/nn/rope.py"."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if path.endswith("/__init__.py"):
        module += ".__init__"  # so that a relative import starts from the package itself
    room = room_of(module)
    if room not in LEVELS:
        return []
    found = []
    for name in imported_modules(ast.parse(source), module):
        other = room_of(name)
        if other == room or other not in LEVELS:
            continue
        if LEVELS[other] >= LEVELS[room]:
            package = "experiments" if other == "experiments" else f"jaxlm.{other}"
            found.append(f"{path} imports {package} ({LEVELS[room]} -> {LEVELS[other]})")
    return list(dict.fromkeys(found))


def outside_violations(path: str, source: str) -> list[str]:
    """Prints, clocks, processes and files in a room that is to hold pure functions."""
    room = room_of(path.removesuffix(".py").replace("/", "."))
    if room is None or room in OUTSIDE_ROOMS:
        return []
    found, tree = [], ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", None))
            if isinstance(node.func, ast.Name) and called in ("print", "input"):
                found.append(f"{path}:{node.lineno} calls {called}")
            if called in FILE_CALLS and room not in FILE_ROOMS:
                found.append(f"{path}:{node.lineno} calls {called}")
    clocks = {name.split(".")[0] for name in imported_modules(tree, "")}
    if room in TIMING_ROOMS:
        clocks.discard("time")
    found += [f"{path} imports {m}" for m in CLOCK_AND_PROCESS_MODULES if m in clocks]
    return found


def sources() -> dict[str, str]:
    paths = [p for top in ("jaxlm", "experiments") for p in (ROOT / top).rglob("*.py")]
    # Programs that made bundled data are run by hand and belong to no room.
    paths = [p for p in paths if not p.name.startswith("make_")]
    return {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(paths)}


SOURCES = sources()


def test_every_room_has_a_level():
    rooms = {p.split("/")[1] for p in SOURCES if p.startswith("jaxlm/") and p.count("/") > 1}
    assert rooms <= set(LEVELS), f"give a level to {sorted(rooms - set(LEVELS))}"
    assert {"core", "nn", "models", "train"} <= rooms  # the sources were found


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_down_only(path):
    assert import_violations(path, SOURCES[path]) == []


@pytest.mark.parametrize("path", SOURCES)
def test_files_clocks_and_prints_stay_in_their_rooms(path):
    assert outside_violations(path, SOURCES[path]) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("jaxlm/nn/rope.py", "import jaxlm.models", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/rope.py", "from jaxlm.models import api", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/rope.py", "from jaxlm import models", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/rope.py", "from ..models import api", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/__init__.py", "from ..models import api", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/rope.py", "from .. import models", ["imports jaxlm.models (1 -> 2)"]),
        ("jaxlm/nn/rope.py", "def f():\n  import jaxlm.io", ["imports jaxlm.io (1 -> 5)"]),
        ("jaxlm/data/a.py", "import jaxlm.tokenizers", ["imports jaxlm.tokenizers (1 -> 1)"]),
        ("jaxlm/io/a.py", "import experiments.copy", ["imports experiments (5 -> 6)"]),
        (
            "jaxlm/core/a.py",
            "import jaxlm.nn.rope, jaxlm.io",
            ["imports jaxlm.nn (0 -> 1)", "imports jaxlm.io (0 -> 5)"],
        ),
        ("jaxlm/nn/rope.py", "from jaxlm.core import arrays\nfrom . import norms", []),
        ("jaxlm/nn/rope.py", "import tokenizers, models.api", []),
        ("experiments/a.py", "from jaxlm.train import step", []),
    ],
)
def test_the_import_test_itself_catches_a_planted_violation(path, source, expected):
    assert import_violations(path, source) == [f"{path} {what}" for what in expected]


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("jaxlm/nn/a.py", "x = 1\nprint(x)", ["jaxlm/nn/a.py:2 calls print"]),
        ("jaxlm/train/a.py", "import time", ["jaxlm/train/a.py imports time"]),
        ("jaxlm/train/a.py", "from time import monotonic", ["jaxlm/train/a.py imports time"]),
        ("jaxlm/core/a.py", "with open('x') as f: pass", ["jaxlm/core/a.py:1 calls open"]),
        ("jaxlm/core/a.py", "p.write_text('x')", ["jaxlm/core/a.py:1 calls write_text"]),
        ("jaxlm/data/a.py", "open('x')\nprint(1)", ["jaxlm/data/a.py:2 calls print"]),
        ("experiments/a.py", "import subprocess", ["experiments/a.py imports subprocess"]),
        ("jaxlm/io/a.py", "import time\nprint(open('x'))", []),
        ("jaxlm/nn/a.py", "jax.debug.print('x')", []),
    ],
)
def test_the_outside_test_itself_catches_a_planted_violation(path, source, expected):
    assert outside_violations(path, source) == expected


IMPORT_EVERYTHING = """
import importlib, pkgutil, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("an import opened a connection")

socket.socket.connect = refuse
import jaxlm

for found in pkgutil.walk_packages(jaxlm.__path__, "jaxlm."):
    importlib.import_module(found.name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "an import started a backend"
heavy = ("torch", "transformers", "matplotlib", "orbax", "tensorstore", "wandb", "tensorboard")
pulled = [name for name in heavy if name in sys.modules]
assert not pulled, f"importing jaxlm pulled in {pulled}"
print(sum(name.startswith("jaxlm.") for name in sys.modules))
"""


def test_importing_every_module_starts_no_backend_and_pulls_nothing_heavy():
    child = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) > 10
