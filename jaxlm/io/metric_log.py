"""One JSON object a line, appended and never rewritten: metrics.jsonl, timings.jsonl and the like.

Every line is valid JSON: NaN and the infinities, which JSON does not have, are written as null.
A number is written with all its digits, so that two files are equal exactly when the numbers are.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxlm.core import json_forms
from jaxlm.core.config import ConfigError


class MetricLog:
    """Appends records to a file, each handed to the system before `append` returns.

    What a checkpoint stands for must be appended before it is saved: a resumed run writes only what
    comes after. `sync` before that save makes the records survive a power cut too.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens `path`, making it if need be; a torn last line of a killed writer is cut off."""
        self._path = pathlib.Path(path)
        try:
            self._file = open(self._path, "a+b", buffering=0)  # noqa: SIM115
            self._file.truncate(_complete_size(self._path.read_bytes()))
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None

    def append(self, record: dict[str, Any]) -> None:
        """Writes one line; arrays and numpy scalars of one element become numbers.

        Raises:
          ConfigError: the line could not be written in full; the file is as it was before.
        """
        line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes a part, then fails
                written += self._file.write(line[written:])
        except OSError as error:
            self._file.truncate(before)
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from None

    def sync(self) -> None:
        """Returns when every record is on the disk; ConfigError where it takes no more."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def read(path: str | os.PathLike, form: Any = dict) -> list[dict[str, Any]]:
    """The records of a file in order, without a torn last line; values written as null are None.

    Args:
      form: of every record, see `jaxlm.core.json_forms`.
    Raises:
      ConfigError: no such file, or a line before the last that is not a JSON object of the form.
    """
    path = pathlib.Path(path)
    return [record for record, _ in _records(path, form)]


def truncate(
    path: str | os.PathLike, keep: Callable[[dict[str, Any]], bool], form: Any = dict
) -> None:
    """Cuts a log back to the longest run of complete lines from its start that `keep` is true of.

    A file that does not exist is left so.

    Args:
      form: of every record, as `read` has it, for `keep` to rely on.
    Raises:
      ConfigError: a line before the last is not a JSON object of the form; nothing is cut then.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    size = 0
    for record, end in _records(path, form):
        if not keep(record):
            break
        size = end
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _records(path: pathlib.Path, form: Any) -> list[tuple[dict[str, Any], int]]:
    """Each complete record with the offset of the byte after its line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    records, end = [], 0
    for number, line in enumerate(data[: _complete_size(data)].splitlines(keepends=True), 1):
        end += len(line)
        try:
            record = json_forms.parse(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{path}: line {number} is not a JSON object")
        if problem := json_forms.problem(record, form):
            raise ConfigError(f"{path}: line {number}: {problem}")
        records.append((record, end))
    return records


def _complete_size(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _plain(value: Any) -> Any:
    """`value` as JSON types."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
