"""Text as documents, read in pieces so that no file has to fit in memory."""

import codecs
import contextlib
import dataclasses
import functools
import hashlib
import importlib.resources
import itertools
import lzma
import os
import pathlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import BinaryIO, cast

from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data import bundled
from jaxlm.data.config import DataConfig

PIECE_BYTES = 1 << 20

KeyedPieces = Iterator[tuple[Hashable, str]]  # neighbours with equal keys are of one document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents of text in a fixed order, read anew at each pass.

    name: what a person calls it: the last part of the path, or "shakespeare" for the bundled plays.
    num_bytes: UTF-8 bytes of all documents; separators and byte-order marks are not counted.
    num_documents: how many, empty ones not counted.
    fingerprint: 64 hex digits, the SHA-256 of the documents' SHA-256 digests in order. It is a
      function of the text and of how it is split into documents, not of the names of files.
    """

    name: str
    num_bytes: int
    num_documents: int
    fingerprint: str
    read_pieces: Callable[[], KeyedPieces]

    def documents(self) -> Iterator[Iterable[str]]:
        """For each document in order its pieces of text, which joined are the document.

        Memory is bounded by the size of a piece. The pieces of a document can be read until the
        next document is asked for, as with `itertools.groupby`.

        Raises:
          ConfigError: a file went away or stopped being UTF-8 since the corpus was opened.
        """
        return _group(self.read_pieces())


def open_corpus(cfg: DataConfig) -> Corpus:
    """Reads the corpus once, in bounded memory, to check and fingerprint it.

    Newlines are kept as they are; a byte-order mark at the start of a file is dropped. A folder
    is read recursively, in sorted order of the paths inside it, without hidden files and folders;
    each file starts a new document.

    Raises:
      ConfigError: the path is missing, unreadable or without text, or a file is not UTF-8 and
        `invalid_utf8` is "error".
    """
    flag = f"{FLAG}data.path={cfg.path}"
    separators = [cfg.document_separator] if cfg.document_separator is not None else []
    openers: dict[str, Callable[[], contextlib.AbstractContextManager[BinaryIO]]]
    if cfg.path is None:
        name, openers = "shakespeare", {}
        openers["the bundled plays"] = _open_bundled
        separators.insert(0, bundled.SEPARATOR)
    else:
        path = _expand_user(cfg.path, flag)
        name = path.resolve().name
        files = _list_files(path, flag)
        openers = {
            flag if file == path else f"{flag}: {file}": functools.partial(open, file, "rb")
            for file in files
        }

    def read_pieces() -> KeyedPieces:
        pieces = _read_files(openers, "strict" if cfg.invalid_utf8 == "error" else "replace")
        for separator in separators:
            pieces = _split(pieces, separator)
        return pieces

    num_bytes, num_documents, corpus_digest = 0, 0, hashlib.sha256()
    for document in _group(read_pieces()):
        digest = hashlib.sha256()
        for piece in document:
            data = piece.encode()
            num_bytes += len(data)
            digest.update(data)
        num_documents += 1
        corpus_digest.update(digest.digest())
    if not num_bytes:
        what = (
            "the file is empty"
            if pathlib.Path(str(cfg.path)).is_file()
            else "no text in this folder"
        )
        raise ConfigError(f"{flag}: {what}; give a UTF-8 text file or a folder of them")
    return Corpus(
        name=name,
        num_bytes=num_bytes,
        num_documents=num_documents,
        fingerprint=corpus_digest.hexdigest(),
        read_pieces=read_pieces,
    )


@contextlib.contextmanager
def _open_bundled() -> Iterator[BinaryIO]:
    packed = importlib.resources.files(bundled).joinpath(bundled.FILE_NAME)
    with packed.open("rb") as file, lzma.open(file) as text:
        yield cast(BinaryIO, text)


def _expand_user(path: str, flag: str) -> pathlib.Path:
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{flag}: no such user; a name that begins with ~ is ./~...") from None


def _list_files(path: pathlib.Path, flag: str) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    if not path.exists():
        raise ConfigError(f"{flag}: no such file or folder")
    if not path.is_dir():
        raise ConfigError(f"{flag}: neither a regular file nor a folder; give a text file")
    files = []
    for folder, folders, names in os.walk(path, onerror=_raise_config_error(flag)):
        folders[:] = [f for f in folders if not f.startswith(".")]
        files += [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((f for f in files if f.is_file()), key=lambda f: f.relative_to(path).as_posix())


def _raise_config_error(label: str) -> Callable[[OSError], None]:
    def onerror(error: OSError) -> None:
        raise ConfigError(f"{label}: cannot read {error.filename}: {error.strerror}") from None

    return onerror


def _read_files(
    openers: dict[str, Callable[[], contextlib.AbstractContextManager[BinaryIO]]], errors: str
) -> KeyedPieces:
    """The text of each file, keyed by its label, which is also how errors begin."""
    for label, open_file in openers.items():
        try:
            with open_file() as file:
                for text in _decode(file, label, errors):
                    yield label, text
        except OSError as error:
            raise ConfigError(f"{label}: cannot read it: {error.strerror or error}") from None


def _decode(file: BinaryIO, label: str, errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    offset = 0  # of the first byte that the decoder has not turned into text
    data = file.read(PIECE_BYTES)
    if data.startswith(codecs.BOM_UTF8):
        offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
    while True:
        last = not data
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=last)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{label}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
                f"{offset - pending + error.start} ({error.reason}); convert the file to UTF-8, "
                f"or set {FLAG}data.invalid_utf8=replace"
            ) from None
        if text:
            yield text
        if last:
            return
        offset += len(data)
        data = file.read(PIECE_BYTES)


def _split(pieces: KeyedPieces, separator: str) -> KeyedPieces:
    """Ends a document at each `separator`, which may lie across pieces and is left out."""
    current, part, held = None, 0, ""  # held: the end of the text, where a separator may begin
    for key, text in pieces:
        if key != current:
            if held:
                yield (current, part), held
            current, part, held = key, 0, ""
        *ended, rest = (held + text).split(separator)
        for document in ended:
            if document:
                yield (current, part), document
            part += 1
        cut = max(0, len(rest) - len(separator) + 1)
        if cut:
            yield (current, part), rest[:cut]
        held = rest[cut:]
    if held:
        yield (current, part), held


def _group(pieces: KeyedPieces) -> Iterator[Iterable[str]]:
    for _, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        yield (text for _, text in group)
