"""The Colab notebook, run from top to bottom on this machine."""

import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "experiments" / "colab.ipynb"


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
    run = nbclient.NotebookClient(
        notebook, timeout=1500, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
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
