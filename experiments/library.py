"""Source text of the Python standard library, as it lies beside the running interpreter."""

import dataclasses
import hashlib
import pathlib
import platform
import sysconfig
from collections.abc import Sequence
from typing import Any

from jaxlm.core.config import FLAG, ConfigError

# About 1.7 MB by many authors; each file is there in Python 3.11 and later.
MODULES = (
    *("argparse.py", "ast.py", "calendar.py", "codecs.py", "collections/__init__.py"),
    *("configparser.py", "contextlib.py", "csv.py", "dataclasses.py", "email/message.py"),
    *("fractions.py", "functools.py", "gettext.py", "gzip.py", "heapq.py", "http/client.py"),
    *("inspect.py", "ipaddress.py", "json/encoder.py", "logging/__init__.py", "optparse.py"),
    *("os.py", "pickle.py", "random.py", "selectors.py", "shutil.py", "socket.py"),
    *("statistics.py", "subprocess.py", "tempfile.py", "textwrap.py", "threading.py"),
    *("tokenize.py", "urllib/parse.py", "uuid.py", "weakref.py", "xml/dom/minidom.py"),
)


def read_modules(modules: Sequence[str]) -> list[str]:
    """The text of each file of the library, such as "ast.py" or "json/encoder.py".

    Raises:
      ConfigError: a file that this Python does not have, or has without its source.
    """
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    texts = []
    for name in modules:
        try:
            texts.append((folder / name).read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{FLAG}modules: the library of this Python {platform.python_version()} has no "
                f"text {name} ({error}); leave it out"
            ) from None
    return texts


def fingerprint(texts: Sequence[str]) -> str:
    """64 hex digits: the SHA-256 of the texts' SHA-256 digests in order."""
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def check_fingerprint(texts: Sequence[str], expected: str) -> None:
    """Raises ConfigError if the texts are not those with the fingerprint `expected`."""
    found = fingerprint(texts)
    if found != expected:
        raise ConfigError(
            f"{FLAG}corpus_sha256={expected}: the library of this Python "
            f"{platform.python_version()} has another text ({found}); use the Python that the "
            f"study was started with, or {FLAG}corpus_sha256=none and a new --workdir"
        )


def resolve(cfg: Any) -> Any:
    """The config of a study with `modules` and `corpus_sha256`: fills in the hash, or checks it."""
    texts = read_modules(cfg.modules)
    if cfg.corpus_sha256 is not None:
        check_fingerprint(texts, cfg.corpus_sha256)
    return dataclasses.replace(cfg, corpus_sha256=fingerprint(texts))
