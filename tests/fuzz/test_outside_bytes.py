"""Any bytes in the place of a file: one clear line or success, in bounded time and memory.

Nothing outside the folder is opened by a name in a file, and nothing is executed or unpickled.
"""

import ast
import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import warnings

import hypothesis
import mutations
import outside_files
import pytest
from hypothesis import strategies as st

from jaxlm.core.config import ConfigError
from jaxlm.data.token_file import HEADER_BYTES, MAGIC
from jaxlm.reports import compare, run_report
from jaxlm.reports import curves as curves_lib

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 20  # of a read; a loop over a size that lies would take for ever
ROOM = 256 << 20  # bytes that a read may take; the files have some thousands
EXECUTED = ("exec", "compile", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec")
QUICK, LONG = 25, int(os.environ.get("FUZZ_EXAMPLES", 200))
ANEW = "FUZZ_EXAMPLES" in os.environ  # else the same examples every time, as a suite should have

_watch: dict = {}  # where the audit hook, which cannot be taken away again, is to look


def _audit(event, args):
    if not _watch:
        return
    if event == "exec" and args[0].co_filename.startswith((sys.prefix, sys.base_prefix, "<frozen")):
        return  # the import of a module that is installed
    if event in EXECUTED:
        _watch["events"].append(f"{event} {str(args)[:100]}")
    elif event == "open" and isinstance(args[0], str):
        _watch["opened"].append(args[0])


sys.addaudithook(_audit)


@contextlib.contextmanager
def guarded():
    """Bounds time and memory; gives {"opened": paths, "events": what was executed}."""

    def too_long(*_):
        raise TimeoutError(f"still reading after {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, too_long)
    found = {"opened": [], "events": []}
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, hard))
    signal.alarm(SECONDS)
    _watch.update(found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield found
    finally:
        _watch.clear()
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def check(read, folder: pathlib.Path) -> bool:
    """Reads; whether it was taken for good."""
    good = True
    with guarded() as found:
        try:
            read(folder)
        except ConfigError as error:
            good, line = False, str(error)
    if not good:
        assert line and "\n" not in line
    assert not found["events"], found["events"]
    inside = (str(folder), sys.prefix, sys.base_prefix, "/proc/", str(ROOT))
    outside = [path for path in found["opened"] if not path.startswith(inside)]
    outside += [path for path in found["opened"] if ".." in pathlib.PurePath(path).parts]
    assert not outside, outside
    return good


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """`valid(kind)`: a folder with good files, read once."""
    made = {}

    def get(kind):
        if kind not in made:
            make, read = outside_files.KINDS[kind]
            folder = tmp_path_factory.mktemp("valid")
            make(folder)
            read(folder)  # imports what it needs; and it is good
            made[kind] = folder
        return made[kind]

    return get


@pytest.fixture(autouse=True, scope="module")
def _charts_drawn_once():
    """Most spoiled runs have the charts of the good one, each of which takes 0.2 s."""
    drawn = {}

    def chart(curves, **options):
        key = repr((curves, options))
        if key not in drawn:
            drawn[key] = curves_lib.chart(curves, **options)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (run_report, compare):
            patch.setattr(module, "chart", chart)
        yield


def json_part(path: pathlib.Path) -> tuple[bytes, str, bytes] | None:
    """The file cut into what stands before its JSON, the JSON, and the rest; None without one."""
    data = path.read_bytes()
    if path.suffix == ".tokens":
        return data[: len(MAGIC)], data[len(MAGIC) : HEADER_BYTES].decode(), data[HEADER_BYTES:]
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        return b"", data[8:end].decode(), data[end:]
    if path.suffix == ".jsonl":
        first, _, rest = data.partition(b"\n")
        return b"", first.decode(), b"\n" + rest
    return (b"", data.decode(), b"") if path.suffix == ".json" else None


def joined(path: pathlib.Path, before: bytes, text: str, after: bytes) -> bytes:
    new = text.encode("utf-8", "surrogatepass")
    if path.suffix == ".tokens":
        new = new.ljust(HEADER_BYTES - len(MAGIC))[: HEADER_BYTES - len(MAGIC)]
    if path.suffix == ".safetensors":
        before = len(new).to_bytes(8, "little")
    return before + new + after


def spoil(data: st.DataObject, folder: pathlib.Path) -> None:
    """Changes one file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files), label=f"file of {folder}")
    part = json_part(path)
    if part is None or data.draw(st.integers(0, 2)) == 0:
        content = data.draw(mutations.spoiled(path.read_bytes()))
    else:
        content = joined(path, part[0], data.draw(mutations.edited_json(part[1])), part[2])
        reseal = outside_files.RESEAL.get(path.name)
        if reseal and data.draw(st.integers(0, 3)):
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                content = reseal(content)
    path.write_bytes(content)


@pytest.mark.parametrize("examples", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", outside_files.KINDS)
def test_a_spoiled_file_is_one_line_or_read(kind, examples, valid, tmp_path):
    base, copy = valid(kind), tmp_path / "copy"

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == QUICK or not ANEW,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def attack(data):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        spoil(data, copy)
        check(outside_files.KINDS[kind][1], copy)

    attack()


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("run", "summary.json", {"step": [1]}),
        ("run", "summary.json", {"val_loss": "2"}),
        ("results", "results.json", {"rows": [[{}, 0, None, "loss", 10**400, "nats"]]}),
        ("results", "results.json", {"rows": [[{"rank": []}, 0, None, "loss", 1.0, "nats"]]}),
        ("checkpoint", "checkpoints/step_00000003/manifest.json", {"files": {"a\0b": {}}}),
    ],
)
def test_what_was_found_once(kind, name, change, valid, tmp_path):
    shutil.copytree(valid(kind), tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    content = json.dumps(json.loads(path.read_text()) | change).encode()
    path.write_bytes(outside_files.RESEAL.get(path.name, bytes)(content))
    assert check(outside_files.KINDS[kind][1], tmp_path) == (kind == "checkpoint")


@pytest.mark.parametrize("kind", outside_files.KINDS)
def test_the_files_are_good_before_they_are_spoiled(kind, valid):
    assert check(outside_files.KINDS[kind][1], valid(kind))


def test_the_check_sees_what_it_should(tmp_path):
    """A reader that does each of the things that none may do."""
    (tmp_path / "x").write_text("{}")
    for bad, error in (
        (lambda folder: bytearray(1 << 30), MemoryError),
        (lambda folder: open("/etc/hostname").close(), AssertionError),
        (lambda folder: open(folder / "../x", "w").close(), AssertionError),
        (lambda folder: eval("1 + 1"), AssertionError),
        (lambda folder: json.loads("{"), ValueError),
    ):
        with pytest.raises(error):
            check(bad, tmp_path)


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def dangers(source: str) -> list[str]:
    """What in a source could run the bytes it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None)
            if name in FORBIDDEN:
                found.append(f"line {node.lineno}: {name}")
            found += [
                f"line {node.lineno}: {word.arg}"
                for word in node.keywords
                if word.arg in ("allow_pickle", "shell") and getattr(word.value, "value", 1)
            ]
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: {n}" for n in names if n.partition(".")[0] in MODULES]
        if isinstance(node, ast.Attribute) and node.attr in (
            "exec_module",
            "run_path",
            "torch_load",
        ):
            found.append(f"line {node.lineno}: {node.attr}")
    return found


def test_nothing_that_is_read_can_run():
    """But for the one place whose use it is: --config and --sweep of a .py file."""
    files = [ROOT / "launch.py", *ROOT.glob("jaxlm/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    found = {f.relative_to(ROOT).as_posix(): dangers(f.read_text(encoding="utf-8")) for f in files}
    found = {name: lines for name, lines in found.items() if lines}
    assert list(found) == ["jaxlm/jobs/configs.py"], found
    assert [line.split(": ")[1] for line in found["jaxlm/jobs/configs.py"]] == ["exec_module"]


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)",
        "import pickle",
        "from dill import loads",
        "np.load(f, allow_pickle=True)",
        "exec(x)",
    ],
)
def test_a_danger_is_seen(source):
    assert dangers(source)
