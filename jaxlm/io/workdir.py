"""The folder of one run: its name, its lock, its config, and files that are never half-written."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import re
import socket
from typing import Any

from jaxlm.core import config as config_lib
from jaxlm.core import json_forms
from jaxlm.core.config import ConfigError

CONFIG_FILE = "config.json"
CONFIG_FORMAT = 1
LOCK_FILE = "lock"


def new_run_dir(root: str | os.PathLike, name: str) -> pathlib.Path:
    """Makes and returns `root/name-001`, or the first number after the highest one in use.

    The folder is made by this call and by no other: of two processes that ask at once, each gets
    its own number.
    """
    root = pathlib.Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        numbered = re.compile(re.escape(name) + r"-(\d+)")
        taken = [int(m[1]) for p in os.listdir(root) if (m := numbered.fullmatch(p))]
        number = max(taken, default=0) + 1
        while True:
            path = root / f"{name}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
            number += 1
    except OSError as error:
        raise ConfigError(f"{root}: cannot make a run folder here: {error.strerror}") from None


class WorkdirLock:
    """Holds `<workdir>/lock` while a process writes to the run; a context manager.

    It is a lock of the kernel, gone the moment its owner dies, so a killed run needs no cleaning
    up. The text in the file only tells a person who holds it.

    Raises:
      ConfigError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = pathlib.Path(workdir)
        self._fd: int | None = None

    def __enter__(self) -> "WorkdirLock":
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"--workdir={self._workdir}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(os.pread(fd, 4096, 0))
            os.close(fd)
            raise ConfigError(f"--workdir={self._workdir}: in use by {holder}") from None
        except OSError as error:
            os.close(fd)
            raise ConfigError(
                f"--workdir={self._workdir}: this file system cannot lock: {error.strerror}"
            ) from None
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
        with contextlib.suppress(OSError):  # a full disk spoils the message, not the lock
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode(), 0)
        self._fd = fd
        return self

    def __exit__(self, *exc) -> None:
        # The file stays: to unlink it would let two processes lock two files of one name.
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _describe_holder(text: bytes) -> str:
    try:
        holder = json_forms.parse(text)
        return f"process {holder['pid']} on host {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the holder has not written its name yet
        return "another process"


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 `text` so that a reader, or a crash, sees the old file or the new one whole.

    Raises:
      ConfigError: it could not be written; the old file, if any, is as it was.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        content = text.encode()
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def fsync_dir(path: str | os.PathLike) -> None:
    """Makes renames inside a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically; NaN and infinities are refused by ValueError."""
    write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def load_json(path: str | os.PathLike, form: Any = object) -> Any:
    """Reads a JSON file; a ConfigError names it when it is missing, not JSON or not of the form.

    form: see `jaxlm.core.json_forms`.
    """
    path = pathlib.Path(path)
    try:
        value = json_forms.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if problem := json_forms.problem(value, form):
        raise ConfigError(f"{path}: {problem}")
    return value


def save_config(workdir: str | os.PathLike, config: Any, **more: Any) -> None:
    """Writes `<workdir>/config.json`, from which the run can be launched again.

    more: what else it says, such as the study whose config it is.
    """
    saved = {"format_version": CONFIG_FORMAT, **more, "config": config_lib.to_dict(config)}
    save_json(pathlib.Path(workdir) / CONFIG_FILE, saved)


def load_config(workdir: str | os.PathLike, cls: type) -> Any:
    """The config saved with a run, as a `cls`.

    Args:
      workdir: a run's folder, or the path of its config.json.
      cls: the config dataclass.
    Raises:
      ConfigError: no such file, another format version, or fields that `cls` does not accept.
    """
    path = pathlib.Path(workdir)
    path = path / CONFIG_FILE if path.is_dir() else path
    saved = load_json(path)
    if not isinstance(saved, dict) or "config" not in saved:
        raise ConfigError(f'{path}: expected {{"format_version": {CONFIG_FORMAT}, "config": ...}}')
    if saved.get("format_version") != CONFIG_FORMAT:
        raise ConfigError(
            f"{path}: format_version {saved.get('format_version')}, this version of jaxlm reads "
            f"{CONFIG_FORMAT}"
        )
    return config_lib.from_dict(cls, saved["config"], str(path))


def check_same_run(saved: Any, given: Any, free: set[str]) -> list[str]:
    """Whether a run may go on with the config given now.

    Args:
      saved: the config the run was started with.
      given: the config of this launch.
      free: paths such as "train.num_steps" that may change from one launch to the next.
    Returns:
      The differences in free fields, "train.num_steps: 100 -> 200" each, to be printed.
    Raises:
      ConfigError: other fields differ; all of these are in its one line.
    """
    allowed, refused = [], []
    for line in config_lib.diff(saved, given):
        line = " ".join(line.split())
        (allowed if line.partition(":")[0] in free else refused).append(line)
    if refused:
        raise ConfigError(
            f"--workdir holds a run with another config (saved -> given): {'; '.join(refused)}. "
            "Give these fields their saved values or choose another --workdir"
        )
    return allowed
