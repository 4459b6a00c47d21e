"""Token ids on disk: written once in a stream, checked when opened, read through short mappings.

Layout, all little-endian: 4096 bytes of header (a magic line, then one JSON object padded with
spaces), the ids as uint16 or uint32, zeros up to a multiple of 8, then a record (stop, key) for
each document. `stop` is the index after the document's last id; `key` is the first 8 bytes of the
SHA-256 of its text, so that a choice of documents by key needs neither their order nor a tokenizer.
"""

import dataclasses
import functools
import hashlib
import json
import mmap
import os
import pathlib
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, BinaryIO, Literal, Protocol

import numpy as np

from jaxlm.core import config, json_forms
from jaxlm.core.config import ConfigError
from jaxlm.data.corpus import Corpus

MAGIC = b"jaxlm tokens\n"
FORMAT = 1
HEADER_BYTES = 4096
DOCUMENT = np.dtype([("stop", "<i8"), ("key", "<u8")])
BLOCK_BYTES = 1 << 22

EncodeDocuments = Callable[[Iterable[Iterable[str]]], Iterable[Iterable[np.ndarray]]]


class Tokenizer(Protocol):
    """What a token file needs of a tokenizer."""

    fingerprint: Any  # a text, which may be a cached property

    @property
    def vocab_size(self) -> int:
        """V; ids are in range(V)."""
        ...

    def encode_iterable(self, texts: Iterable[str], /) -> Iterable[np.ndarray]:
        """The ids int[...] of the texts joined, in parts."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The header's JSON. `sha256` covers everything after the header, then the other fields."""

    format: int
    tokenizer_fingerprint: str
    vocab_size: int
    corpus_fingerprint: str
    corpus_name: str
    dtype: Literal["uint16", "uint32"]
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str = ""

    @property
    def documents_offset(self) -> int:
        """The byte at which the documents' records begin."""
        end = HEADER_BYTES + self.num_tokens * np.dtype(self.dtype).itemsize
        return end + -end % 8

    @property
    def file_bytes(self) -> int:
        """The size of the whole file."""
        return self.documents_offset + self.num_documents * DOCUMENT.itemsize

    def seal(self, digest) -> "Header":
        """With the `sha256` that follows from the digest of all that stands after the header."""
        digest = digest.copy()
        bare = dataclasses.replace(self, sha256="")
        digest.update(json.dumps(dataclasses.asdict(bare), sort_keys=True).encode())
        return dataclasses.replace(self, sha256=digest.hexdigest())


class TokenFile:
    """An open token file; `tokens[positions]` reads like an array and holds no memory.

    Each read makes a mapping of its own and drops it, so the pages it touched do not count
    against the process afterwards. The file stays the one that was checked, even when another
    takes its name.

    header: see `Header`.
    document_stops: i64[num_documents], the index after each document's last id.
    document_keys: u64[num_documents], from the documents' text.
    """

    def __init__(self, path: pathlib.Path, file: BinaryIO, header: Header, documents: np.ndarray):
        self.path = path
        self.header = header
        self.document_stops = documents["stop"].astype(np.int64)
        self.document_keys = documents["key"].astype(np.uint64)
        self._dtype = np.dtype(header.dtype).newbyteorder("<")
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        """How many ids there are."""
        return self.header.num_tokens

    def __getitem__(self, positions: np.ndarray | slice) -> np.ndarray:
        """Ids at i64[...] positions in range(len(self)), a copy in the dtype of the file."""
        mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        ids = np.frombuffer(mapped, self._dtype, self.header.num_tokens, HEADER_BYTES)
        return ids[positions].copy() if isinstance(positions, slice) else ids[positions]


def cached_token_file(
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache_dir: str | os.PathLike | None = None,
    encode_documents: EncodeDocuments | None = None,
) -> pathlib.Path:
    """The token file of this text by this tokenizer, built the first time it is asked for.

    Its name follows from the two fingerprints. Without `cache_dir` it lies in
    $XDG_CACHE_HOME/jaxlm/tokens, by default ~/.cache/jaxlm/tokens.

    Args:
      encode_documents: as for `build_token_file`, by the tokenizer; by default one after another.
    Raises:
      ConfigError: the folder cannot be written, or as `build_token_file`.
    """
    folder = pathlib.Path(cache_dir) if cache_dir is not None else _user_cache() / "jaxlm/tokens"
    content = "\0".join((str(FORMAT), corpus.fingerprint, tokenizer.fingerprint))
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.tokens"
    try:
        with path.open("rb") as file:
            _read_header(file, path)
        return path
    except (OSError, ConfigError):
        pass  # not there, or not whole: build it anew
    build_token_file(
        path,
        corpus,
        encode_documents or functools.partial(map, tokenizer.encode_iterable),
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    return path


def _user_cache() -> pathlib.Path:
    named = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else pathlib.Path.home() / ".cache"


def build_token_file(
    path: str | os.PathLike,
    corpus: Corpus,
    encode_documents: EncodeDocuments,
    *,
    vocab_size: int,
    tokenizer_fingerprint: str,
) -> None:
    """Encodes the corpus into `path`, in bounded memory; the file appears whole or not at all.

    Args:
      path: replaced if it exists; its folder is made.
      corpus: each document is encoded on its own.
      encode_documents: for each document its pieces of text -> for each the parts of its ids
        int[...], all read lazily and in order. How a text is cut into pieces must not matter; all
        pieces are to be taken before the last part is given, and documents may be read ahead.
      vocab_size: ids are stored as uint16 up to 65,536, else as uint32.
      tokenizer_fingerprint: asked for again by `open_token_file`.
    Raises:
      ConfigError: an id outside range(vocab_size), no ids at all, a corpus that changed since it
        was opened, a folder or disk that cannot be written, or what `encode_documents`
        raises.
    """
    path = pathlib.Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = pathlib.Path(file.name)
            header = _write(file, corpus, encode_documents, vocab_size, tokenizer_fingerprint)
            text = json.dumps(dataclasses.asdict(header))
            file.seek(0)
            file.write(MAGIC + text.encode().ljust(HEADER_BYTES - len(MAGIC) - 1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"cannot write the token file {path}: {error.strerror or error}; free some space, or "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _write(
    file: IO[bytes],
    corpus: Corpus,
    encode_documents: EncodeDocuments,
    vocab_size: int,
    tokenizer_fingerprint: str,
) -> Header:
    """Writes all that stands after the header and returns the header that belongs to it."""
    header = Header(
        format=FORMAT,
        tokenizer_fingerprint=tokenizer_fingerprint,
        vocab_size=vocab_size,
        corpus_fingerprint=corpus.fingerprint,
        corpus_name=corpus.name,
        dtype="uint16" if vocab_size <= 2**16 else "uint32",
        num_tokens=0,
        num_documents=0,
        num_bytes=corpus.num_bytes,
    )
    dtype = np.dtype(header.dtype).newbyteorder("<")
    payload_digest, corpus_digest = hashlib.sha256(), hashlib.sha256()
    num_tokens = num_documents = 0

    def write(data: bytes) -> None:
        payload_digest.update(data)
        file.write(data)

    file.write(bytes(HEADER_BYTES))
    with tempfile.TemporaryFile(dir=os.path.dirname(file.name)) as documents:
        digests: deque = deque()  # of documents that are being read, the oldest first
        for parts in encode_documents(_hashed(corpus.documents(), digests)):
            for ids in parts:
                wrong = ids[(ids < 0) | (ids >= vocab_size)]
                if wrong.size:
                    raise ConfigError(
                        f"the tokenizer gave id {wrong[0]}, its vocab_size is {vocab_size}"
                    )
                write(ids.astype(dtype).tobytes())
                num_tokens += len(ids)
            key = digests.popleft().digest()
            corpus_digest.update(key)
            documents.write(num_tokens.to_bytes(8, "little") + key[:8])
            num_documents += 1
        if corpus_digest.hexdigest() != corpus.fingerprint:
            raise ConfigError(f"{corpus.name} changed while it was read; start again")
        if not num_tokens:
            raise ConfigError(f"{corpus.name}: the tokenizer made no tokens of it")
        header = dataclasses.replace(header, num_tokens=num_tokens, num_documents=num_documents)
        write(bytes(header.documents_offset - file.tell()))
        documents.seek(0)
        while data := documents.read(BLOCK_BYTES):
            write(data)
    return header.seal(payload_digest)


def _hashed(documents: Iterable[Iterable[str]], digests: deque) -> Iterator[Iterator[str]]:
    """The documents; the digest of each is appended, whole once the document has been read."""

    def hashed(pieces: Iterable[str], digest) -> Iterator[str]:
        for piece in pieces:
            digest.update(piece.encode())
            yield piece

    for document in documents:
        digests.append(hashlib.sha256())
        yield hashed(document, digests[-1])


def open_token_file(path: str | os.PathLike, tokenizer_fingerprint: str) -> TokenFile:
    """Opens a token file after reading it through once to check that it is whole.

    Raises:
      ConfigError: no such file; not a token file; a newer format; truncated, damaged or with a
        header that does not fit; made by another tokenizer.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            if header.tokenizer_fingerprint != tokenizer_fingerprint:
                raise ConfigError(
                    f"{path}: made by the tokenizer {header.tokenizer_fingerprint[:12]}, not by "
                    f"this one ({tokenizer_fingerprint[:12]}); use the tokenizer it was made with, "
                    "or make a token file with this one"
                )
            return TokenFile(path, file, header, _read_documents(file, header, path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the token file: {error.strerror}") from None


def _read_header(file: BinaryIO, path: pathlib.Path) -> Header:
    block = file.read(HEADER_BYTES)
    if not block.startswith(MAGIC):
        raise ConfigError(f"{path}: not a jaxlm token file")
    try:
        values = json_forms.parse(block[len(MAGIC) :])
    except ValueError:
        raise ConfigError(_damaged(path, "its header is not JSON")) from None
    version = values.get("format") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(
            f"{path}: token file format {version}, this jaxlm reads {FORMAT}; update jaxlm, or "
            "delete the file to have it built again"
        )
    header = config.from_dict(Header, values, _damaged(path, "its header does not fit"))
    counts = (header.num_tokens, header.num_documents, header.vocab_size)
    if min(counts) < 1 or version != FORMAT:
        raise ConfigError(_damaged(path, "its header does not fit"))
    size = os.fstat(file.fileno()).st_size
    if size != header.file_bytes:
        raise ConfigError(
            _damaged(path, f"it has {size:,} bytes, its header says {header.file_bytes:,}")
        )
    return header


def _read_documents(file: BinaryIO, header: Header, path: pathlib.Path) -> np.ndarray:
    """The records of the documents, after checking the ids and the digest of the whole file."""
    digest = hashlib.sha256()
    dtype = np.dtype(header.dtype).newbyteorder("<")
    file.seek(HEADER_BYTES)
    left = header.num_tokens * dtype.itemsize
    while left:
        data = file.read(min(BLOCK_BYTES, left))
        if not data:
            raise ConfigError(_damaged(path, "it became shorter while it was read"))
        digest.update(data)
        left -= len(data)
        if np.frombuffer(data, dtype).max() >= header.vocab_size:
            raise ConfigError(_damaged(path, f"an id is not below vocab_size {header.vocab_size}"))
    padding = file.read(header.documents_offset - file.tell())
    digest.update(padding)
    data = file.read()
    digest.update(data)
    if header.seal(digest) != header or len(data) % DOCUMENT.itemsize:
        raise ConfigError(_damaged(path, "its content does not match its checksum"))
    documents = np.frombuffer(data, DOCUMENT)
    stops = documents["stop"]
    if stops[0] < 0 or (np.diff(stops) < 0).any() or stops[-1] != header.num_tokens:
        raise ConfigError(_damaged(path, "its documents do not fit its tokens"))
    return documents


def _damaged(path: pathlib.Path, what: str) -> str:
    return f"{path}: the token file is damaged ({what}); delete it to have it built again"
