"""A text, a config, a finished run and the caches that the runs of these tests share."""

import job_runs
import pytest


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """`launch("--job=sample", ...)` gives an Outcome; see `job_runs.Launcher`."""
    launcher = job_runs.Launcher(tmp_path_factory.mktemp("cache"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text file of 3 kB."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    job_runs.write_text(path)
    return path


@pytest.fixture(scope="session")
def config(text, tmp_path_factory):
    """`--config=FILE` of a run that takes a moment: 48 steps in calls of 8."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(job_runs.CONFIG.format(text=str(text)))
    return f"--config={path}"


@pytest.fixture(scope="session")
def finished(launch, config, tmp_path_factory):
    """The folder of the run of `config`, unbroken; to be read, or copied before it is changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    outcome = launch(config, f"--workdir={folder}")
    assert outcome.code == 0, outcome.err
    return folder
