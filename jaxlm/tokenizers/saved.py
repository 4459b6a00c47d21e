"""Tokenizers as one readable JSON file with its hash inside."""

import os
from pathlib import Path
from typing import Any

from jaxlm.core import json_forms
from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.bpe import bpe_tokenizer, readable_pair
from jaxlm.tokenizers.bytes import byte_tokenizer
from jaxlm.tokenizers.characters import character_tokenizer
from jaxlm.tokenizers.tokenizer import FORMAT, Tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes the tokenizer, whole or not at all; ConfigError where the folder cannot be written."""
    write_text(path, tokenizer.to_json())


def write_text(path: str | Path, text: str) -> None:
    """A UTF-8 file, whole or not at all; its folder is made. ConfigError names the file."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot save the tokenizer: {error.strerror}") from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a saved file.

    Raises:
      ConfigError: no such file, not JSON, not a tokenizer, a newer format, or content that does
        not match the hash; one line that names the file.
    """
    return tokenizer_from_json(read_text(path), str(path))


def tokenizer_from_json(text: str, where: str = "tokenizer") -> Tokenizer:
    """The inverse of `Tokenizer.to_json`; errors as `load_tokenizer`, with `where` as the file."""
    document = _parse(text, where)
    version, recorded = document.pop("format", None), document.pop("sha256", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"{where}: not a saved tokenizer; it has no format number")
    if version > FORMAT:
        raise ConfigError(
            f"{where}: format {version} is newer than {FORMAT}, the newest this version reads; "
            "update jaxlm"
        )
    try:
        tokenizer = _from_content(document)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: malformed tokenizer file ({error!r})") from None
    if tokenizer.content != document:
        raise ConfigError(f"{where}: malformed tokenizer file; it has fields out of form")
    if tokenizer.fingerprint != recorded:
        raise ConfigError(
            f"{where}: changed since it was saved: the content hashes to "
            f"{tokenizer.fingerprint[:12]}, the file records {str(recorded)[:12]}"
        )
    return tokenizer


def _from_content(content: dict[str, Any]) -> Tokenizer:
    kind, specials = content["kind"], content["special_tokens"]
    if kind == "characters":
        return character_tokenizer(
            content["characters"], unknown=content["unknown"], special_tokens=specials
        )
    if kind == "bytes":
        return byte_tokenizer(special_tokens=specials)
    if kind == "bpe":
        lines = enumerate(content["merges"], 1)
        return bpe_tokenizer(
            [readable_pair(line.split(" "), f"merge {n}", line) for n, line in lines],
            pattern=content["pattern"],
            special_tokens=specials,
            ids=content.get("ids"),
            nfc=content.get("nfc", False),
        )
    raise ConfigError(f"unknown kind {kind!r}; expected characters, bytes or bpe")


def read_text(path: str | Path) -> str:
    """A UTF-8 file; ConfigError names the file and what is wrong with it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; a key given twice is refused. ConfigError names the file."""
    return _parse(read_text(path), str(path))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        document = json_forms.parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected a JSON object, got {type(document).__name__}")
    return document
