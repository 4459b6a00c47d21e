"""Writing of reports, so that a reader finds the old one or the new one, never half of one."""

import os
import pathlib


def write_atomic(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes the file under a temporary name beside it and renames that; text as UTF-8.

    The folder is made if need be.
    """
    path = pathlib.Path(path)
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")  # half of a surrogate pair
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
