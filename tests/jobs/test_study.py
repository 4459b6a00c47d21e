"""The frame of studies, on one of no cost: cells are kept, reruns equal, reports redrawn."""

import json
import os
import subprocess
import sys

import pytest
from job_runs import ROOT

STUDY = """
import dataclasses
from typing import Literal

from jaxlm.analysis.claims import weigh
from jaxlm.analysis.statistics import mean_interval
from jaxlm.reports.figures import Band, lines
from jaxlm.reports.study_report import Table

QUESTION = "Is a draw of seed s above zero?"
SCALES = {"small": {"num_seeds": 3}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    scale: Literal["small", "default", "full"] = "default"
    num_seeds: int = 5
    shifts: tuple[float, ...] = (0.0, 5.0, -5.0)


def cells(cfg):
    return [{"shift": shift, "num_seeds": cfg.num_seeds} for shift in cfg.shifts]


def claims(results):
    return [
        weigh(f"{shift} is above zero", mean_interval(part.values()), above=0.0)
        for (shift,), part in results.by("shift").items()
    ]


def plot(results):
    shifts = [shift for (shift,) in results.by("shift")]
    means = [mean_interval(part.values()).mean for part in results.by("shift").values()]
    labels = {"name": "draws", "title": "Draws", "caption": "c", "x_label": "s", "y_label": "d"}
    return [lines([Band("mean", shifts, means)], **labels)]


def tables(results):
    return [Table("draws", ["shift"], [[shift] for (shift,) in results.by("shift")])]
"""
RUN = """
import os
import pathlib

import numpy as np

from jaxlm.core.config import MissingPackage
from jaxlm.core.results import Row


def run_cell(cell):
    log = pathlib.Path(os.environ["TOY_LOG"])
    log.write_text(log.read_text() + f"{cell['shift']} ")
    if os.environ.get("TOY_BREAKS") == str(cell["shift"]):
        raise RuntimeError("broken off")
    draws = np.random.default_rng(0).normal(cell["shift"], size=cell["num_seeds"])
    at = {"shift": cell["shift"]}
    return [Row(at, seed, None, "draw", float(d), "1") for seed, d in enumerate(draws)]


def resolve(cfg):
    if "TOY_MISSING" in os.environ:
        raise MissingPackage("pip install toys")
    return cfg


def measure(cfg):
    return [{"what": "nothing", "seconds": 0.0}]
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """`run(*flags)` launches the toy study in a process; `run.cells()` are the computed ones."""
    root = tmp_path / "checkout"
    toy = root / "experiments" / "toy"
    toy.mkdir(parents=True)
    (root / "experiments/__init__.py").write_text('STUDIES = {"toy": "a toy"}\n')
    (toy / "__init__.py").write_text(STUDY)
    (toy / "run.py").write_text(RUN)
    (root / "launch.py").write_text((ROOT / "launch.py").read_text())
    log = tmp_path / "log"
    log.write_text("")

    def run(*flags, **env):
        env = {**os.environ, "TOY_LOG": str(log), "JAX_PLATFORMS": "cpu", **env}
        env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        which = [] if any(f.startswith("--experiment") for f in flags) else ["--experiment=toy"]
        command = [sys.executable, str(root / "launch.py"), *which, *flags]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    run.cells = lambda: log.read_text().split()
    run.root = root
    return run


def test_a_study_is_kept_judged_repeated_and_redrawn(study, tmp_path):
    first = study("--workdir=a", TOY_BREAKS="5.0")
    assert first.returncode == 1 and study.cells() == ["0.0", "5.0"]
    second = study("--workdir=a")
    assert second.returncode == 0, second.stderr
    assert study.cells() == ["0.0", "5.0", "5.0", "-5.0"]  # what was finished is not run again
    assert "kept" in second.stdout
    assert "claim     supported: 5.0 is above zero" in second.stdout
    assert "claim     not supported: -5.0 is above zero" in second.stdout
    assert "claim     inconclusive: 0.0 is above zero" in second.stdout
    results = (tmp_path / "a/results.json").read_bytes()
    assert len(json.loads(results)["rows"]) == 15
    assert (tmp_path / "a/results.csv").read_text().count("\n") == 16

    again = study("--config=a/config.json", "--workdir=b")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b/results.json").read_bytes() == results

    report = (tmp_path / "a/report.html").read_text()
    (tmp_path / "a/report.html").unlink()
    redraw = (
        "import sys; sys.modules['jax'] = None\n"
        "from experiments import toy\n"
        "from jaxlm.io.results import load_results\n"
        "results = load_results('a')\n"
        "print([c.verdict for c in toy.claims(results)], len(toy.plot(results)[0].svg()) > 999)"
    )
    env = {**os.environ, "PYTHONPATH": f"{study.root}{os.pathsep}{ROOT}"}
    out = subprocess.run(
        [sys.executable, "-c", redraw], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert out.stdout == "['inconclusive', 'supported', 'not supported'] True\n", out.stderr
    assert "not supported" in report and "Is a draw of seed s above zero?" in report


def test_scale_config_and_all(study, tmp_path):
    outcome = study("--workdir=runs", "--experiment=all")
    assert outcome.returncode == 0, outcome.stderr
    saved = json.loads((tmp_path / "runs/toy/config.json").read_text())
    assert saved["experiment"] == "toy" and saved["config"]["num_seeds"] == 3
    assert "Is a draw of seed s above zero?" in (tmp_path / "runs/index.html").read_text()
    outcome = study("--config.num_seeds=4", "--workdir=runs/toy")
    assert outcome.returncode == 2 and "num_seeds: 3 -> 4" in outcome.stderr


def test_all_leaves_out_a_study_whose_package_is_missing(study, tmp_path):
    outcome = study("--workdir=runs", "--experiment=all", TOY_MISSING="1")
    assert outcome.returncode == 0, outcome.stderr
    assert "left out  toy: pip install toys" in outcome.stdout and study.cells() == []
    assert (tmp_path / "runs/index.html").exists()
    outcome = study("--workdir=a", TOY_MISSING="1")
    assert outcome.returncode == 2 and "pip install toys" in outcome.stderr
    assert not (tmp_path / "a").exists()
