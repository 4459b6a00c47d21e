"""What README.md and the heads of files tell a person to type can be typed, and CI runs it."""

import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import STUDIES
from jaxlm import jobs
from jaxlm.core.config import apply_overrides
from jaxlm.jobs.configs import read_config
from jaxlm.train.config import RunConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "launch.py", "configs/SCALE.md", "benchmarks/RESULTS.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = [
    "pip install -e . && python launch.py",
    "pip install -e '.[test]' && pytest",
]


def commands(page: str, program: str) -> list[str]:
    """The lines of a page that start with `program`, without their comments, joined over `\\`."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.split(r" #|  ", line.strip())[0] for line in text.splitlines()]
    return [line for line in lines if line.startswith(program)]


LAUNCHES = [(page, line) for page in PAGES for line in commands(page, "python launch.py")]


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("launch_of_readme", ROOT / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page, line", LAUNCHES)
def test_a_command_can_be_typed(page, line, launcher, monkeypatch):
    """Its flags and fields are there, its values are of their types, and so are files it names."""
    monkeypatch.chdir(ROOT)
    argv = shlex.split(line.replace("...", "").replace("[", "").replace("]", ""))[1:]
    with flagsaver.flagsaver():
        overrides = launcher.parse(argv)
        given, job = flags.FLAGS, launcher.job_of(flags.FLAGS)
        assert job in (*jobs.JOBS, *jobs.BY_FLAG.values())
        jobs.check_flags(given, job)
        for name in filter(None, (given.config, given.sweep)):
            if name.startswith(("configs/", "experiments/")):
                assert (ROOT / name).is_file(), name
        config = RunConfig()
        if job == "study" and given.experiment != "all":
            assert given.experiment in {*STUDIES, "NAME"}
            name = "warmup" if given.experiment == "NAME" else given.experiment
            config = importlib.import_module(f"experiments.{name}").Config()
        elif given.config and (ROOT / given.config).is_file():
            config = read_config(ROOT / given.config)
        if given.experiment != "all":  # it has none but the scale
            values = {path: value for path, value in overrides.items() if path != "FIELD"}
            if "tokenizer.vocab_size" in values:
                values = {"tokenizer.kind": "bpe"} | values
            apply_overrides(config, values)


def test_there_are_commands_to_look_at():
    assert len(LAUNCHES) > 30


def test_the_first_two_lines_are_what_ci_installs_and_runs():
    """`.ci/run` takes the second from README.md; a test runs what the first leads to."""
    lines = [line.strip() for line in README.splitlines() if line.startswith("    pip install")]
    assert [line.split("  ")[0] for line in lines[:2]] == FIRST
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert script.count("readme_command 2") == 2
    assert 'eval "$install"' in script and 'eval "$test"' in script
    assert "launch.py" in (ROOT / "tests/test_smoke.py").read_text(encoding="utf-8")


def test_the_library_in_thirty_lines_learns_its_text(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    exec(code, {"__name__": "readme"})
    loss, text = capsys.readouterr().out.splitlines()
    assert float(loss.removeprefix("loss ")) < 0.3
    assert text.startswith("to be")


def test_modules_and_files_it_names_are_there():
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"`((?:configs|experiments|benchmarks|tests|jaxlm)/[\w./]*)`", README):
        assert (ROOT / name).exists() or list((ROOT / "jaxlm").glob(name)), name
    for name in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / name).exists(), name
    extras = set(re.findall(r"\.\[([\w-]+)\]", README))
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras), extras


@pytest.mark.parametrize("job", jobs.JOBS)
def test_a_job_reads_the_flags_that_the_table_says(job):
    """No more and no fewer."""
    module = jobs.MODULES.get(job, job)
    source = (ROOT / f"jaxlm/jobs/{module}.py").read_text(encoding="utf-8")
    beside = {"train": ["processes"], "sample": ["sample_flags", "sampling_flags"]}
    beside["chat"] = ["sampling_flags"]
    for name in beside.get(job, []):
        source += (ROOT / f"jaxlm/jobs/{name}.py").read_text(encoding="utf-8")
    for name, readers in jobs.READ_BY.items():
        if re.search(rf"flags\.{name}\b|flags, \"{name}\"", source):
            assert job in readers, f"--{name}"
        elif job in readers:
            assert re.search(rf"flags\.{name}\b|\"{name}\"", source), f"--{name}"
