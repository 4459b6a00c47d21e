"""The Colab notebook, run from top to bottom on this machine."""

import importlib.metadata
import json
import pathlib
import re
import subprocess

import pytest

from experiments import STUDIES

NOTEBOOK = pathlib.Path(__file__).parents[1] / "experiments" / "colab.ipynb"


def cell_with(text: str) -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    [source] = [cell["source"] for cell in cells if text in cell["source"]]
    return source


def test_what_is_cloned_is_installed_though_its_folder_has_the_name(tmp_path, monkeypatch):
    """As on Colab: from an address, into the folder that Python imports from."""
    commands = []

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def run(command, check):
        commands.append(command)
        if command[0] == "git":
            (tmp_path / "jaxlm" / "jaxlm").mkdir(parents=True)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(cell_with('"clone"'), {"SOURCE": "https://example.org/jaxlm"})
    assert [command[0] == "git" for command in commands] == [True, False]
    assert commands[1][1:4] == ["-m", "pip", "install"]
    assert commands[1][-1].startswith(str(tmp_path / "jaxlm"))


def test_every_study_can_be_chosen():
    [choices] = re.findall(r"STUDY = .*@param \[(.*)\]", cell_with("STUDY ="))
    assert {choice.strip(' "') for choice in choices.split(",")} == set(STUDIES)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_its_figures(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none are committed
    parameters = next(cell for cell in notebook.cells if cell.source.startswith("SOURCE"))
    for old, new in (("STEPS = 400", "STEPS = 20"), ('FOLDER = "runs"', f'FOLDER = "{tmp_path}"')):
        assert old in parameters.source
        parameters.source = parameters.source.replace(old, new)
    # A busy machine starts a kernel slowly, and its output comes late.
    run = nbclient.NotebookClient(
        notebook,
        timeout=1500,
        startup_timeout=600,
        iopub_timeout=600,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    run.execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "step 20, validation loss" in text and "step 30, validation loss" in text
    assert "resumed   at step 20" in text and "ROMEO:" in text
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert images
