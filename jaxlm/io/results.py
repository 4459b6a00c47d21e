"""results.json and results.csv: the rows of a study, to draw and judge them again from."""

import csv
import io
import os
import pathlib

from jaxlm.core import results as results_lib
from jaxlm.core.config import ConfigError
from jaxlm.core.results import Results
from jaxlm.io.workdir import load_json, save_json, write_text_atomic

RESULTS_FILE = "results.json"
TABLE_FILE = "results.csv"


def save_results(folder: str | os.PathLike, results: Results) -> None:
    """Writes both files, each atomically."""
    folder = pathlib.Path(folder)
    save_json(folder / RESULTS_FILE, results_lib.to_json(results))
    write_table(folder / TABLE_FILE, *results_lib.to_table(results))


def load_results(path: str | os.PathLike) -> Results:
    """The results of a file, or of results.json in a folder.

    Raises:
      ConfigError: there are none, or the file is not what `save_results` writes.
    """
    path = pathlib.Path(path)
    path = path / RESULTS_FILE if path.is_dir() else path
    try:
        return results_lib.from_json(load_json(path))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_table(path: str | os.PathLike, header: list, rows: list) -> None:
    """A CSV file, written atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())
