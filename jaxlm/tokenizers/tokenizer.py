"""What every tokenizer offers, whichever kind it is."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.pieces import SafeCut, special_matcher, split_specials, split_stream

FORMAT = 1
REPLACEMENT = "\ufffd".encode()


def require_unicode(text: str) -> None:
    """Raises ConfigError where `text` holds half of a surrogate pair, which no encoding carries."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"text holds the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which UTF-8 cannot carry; read the file with errors='replace'"
        ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to ids and back; made by `train_tokenizer`, `load_tokenizer` or a kind's own function.

    Attributes:
      kind: "characters", "bytes" or "bpe".
      pieces: [V] bytes that each id adds when decoding; a special token's own text, and for
        `<unk>` the replacement character.
      special_ids: id of each special token, in order of declaration.
      unk_id: id of unknown characters, if the tokenizer has one.
      encode_ordinary: text without special tokens -> int32 [n].
      safe_cut: where a stream may be cut, see `pieces.SafeCut`.
      content: JSON values from which the tokenizer can be made again.
    """

    kind: Literal["characters", "bytes", "bpe"]
    pieces: tuple[bytes, ...]
    special_ids: dict[str, int]
    unk_id: int | None
    encode_ordinary: Callable[[str], np.ndarray]
    safe_cut: SafeCut
    content: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """V; ids are in range(V)."""
        return len(self.pieces)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V], UTF-8 bytes of text that each id stands for.

        Special tokens count 0: they are no part of the text. So does `<unk>`, whose text is lost;
        bits per byte then comes out too high, never too low.
        """
        lengths = np.array([len(piece) for piece in self.pieces], np.int32)
        lengths[list(self.special_ids.values())] = 0
        if self.unk_id is not None:
            lengths[self.unk_id] = 0
        lengths.setflags(write=False)
        return lengths

    def encode(self, text: str, *, allow_special: bool = False) -> np.ndarray:
        """The ids of `text`, int32 [n].

        Raises:
          ConfigError: a special token in the text without `allow_special`, a character that the
            tokenizer does not know, or a lone surrogate.
        """
        return _join(self._encode_pieces(split_specials(text, self._matcher), allow_special))

    def encode_iterable(
        self, texts: Iterable[str], *, allow_special: bool = False
    ) -> Iterator[np.ndarray]:
        """Parts, int32 [n] each, that join to `encode("".join(texts))` in bounded memory.

        How the text is cut into `texts` changes nothing, not even inside a special token. Memory
        grows only where the text itself has no place to be cut, such as one endless word.
        """
        return self._encode_pieces(
            split_stream(texts, self.special_ids, self.safe_cut), allow_special
        )

    def ordinary_pieces(self, texts: Iterable[str]) -> Iterator[str]:
        """Pieces that join to `texts`; their ids, each encoded alone, join to those of the whole.

        For who encodes a text in several processes, by `encode_ordinary`.

        Raises:
          ConfigError: a special token in the text.
        """
        pieces = split_stream(texts, self.special_ids, self.safe_cut)
        return (piece for piece, _ in _allowed(pieces, allow_special=False))

    def decode(self, ids: Any) -> str:
        """The text of ids [n]; bytes that are not UTF-8 become replacement characters.

        Raises:
          ConfigError: an id outside [0, V).
        """
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"decode expects integers [n], got {ids.dtype} {list(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise ConfigError(
                f"id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}; "
                "these ids come from another tokenizer"
            )
        return b"".join(map(self.pieces.__getitem__, ids.tolist())).decode("utf-8", "replace")

    def token_text(self, id: int) -> str:
        """One id for a reader: control characters and stray bytes are escaped."""
        if id == self.unk_id:
            return "<unk>"
        text = self.pieces[id].decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 hex of the canonical content; equal exactly where ids mean the same."""
        canonical = json.dumps(
            self.content, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_json(self) -> str:
        """One readable JSON document, the hash inside; `tokenizer_from_json` reads it."""
        document = {"format": FORMAT, "sha256": self.fingerprint, **self.content}
        return json.dumps(document, ensure_ascii=False, indent=1) + "\n"

    @functools.cached_property
    def _matcher(self):
        return special_matcher(self.special_ids)

    def _encode_pieces(
        self, pieces: Iterator[tuple[str, bool]], allow_special: bool
    ) -> Iterator[np.ndarray]:
        for piece, is_special in _allowed(pieces, allow_special):
            if is_special:
                yield np.array([self.special_ids[piece]], np.int32)
            else:
                yield self.encode_ordinary(piece)


def _allowed(pieces: Iterator[tuple[str, bool]], allow_special: bool) -> Iterator[tuple[str, bool]]:
    """`pieces`; ConfigError at a special one that is not allowed."""
    position = 0
    for piece, is_special in pieces:
        if is_special and not allow_special:
            raise ConfigError(
                f"text holds the special token {piece!r} at character {position}; remove it, or "
                "pass allow_special=True to encode it as one id"
            )
        yield piece, is_special
        position += len(piece)


def with_specials(
    pieces: Iterable[bytes], special_tokens: Iterable[str]
) -> tuple[tuple[bytes, ...], dict[str, int]]:
    """`pieces` with the special tokens after them, and the id of each.

    Raises:
      ConfigError: a special token that is empty, given twice, or not UTF-8.
    """
    pieces, special_ids = list(pieces), {}
    for special in special_tokens:
        if not special or special in special_ids:
            raise ConfigError(f"special token {special!r} is {'repeated' if special else 'empty'}")
        require_unicode(special)
        special_ids[special] = len(pieces)
        pieces.append(special.encode("utf-8"))
    return tuple(pieces), special_ids


def _join(parts: Iterator[np.ndarray]) -> np.ndarray:
    arrays = list(parts)
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate([np.zeros(0, np.int32), *arrays])
