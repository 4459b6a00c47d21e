"""Writing of reports, so that a reader finds the old one or the new one, never half of one."""

import contextlib
import os
import pathlib

from jaxlm.core.config import ConfigError


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes the file under a temporary name beside it and renames that; text as UTF-8.

    The folder is made if need be.

    Raises:
      ConfigError: it could not be written; the old file, if any, is as it was.
    """
    path = pathlib.Path(path)
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")  # half of a surrogate pair
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
