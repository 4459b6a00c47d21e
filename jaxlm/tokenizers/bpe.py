"""Byte-pair encoding: ranks kept here, encoding by tiktoken, nothing ever downloaded."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.pretokens import PATTERNS, safe_cut
from jaxlm.tokenizers.tokenizer import Tokenizer, require_unicode, with_specials

# GPT-2's readable form of bytes: printable Latin-1 stands for itself, the others follow U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [b for b in range(256) if b not in _PRINTABLE]
BYTE_TO_CHAR = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_HIDDEN)}
CHAR_TO_BYTE = {char: b for b, char in BYTE_TO_CHAR.items()}


def bytes_to_readable(piece: bytes) -> str:
    """b" the" -> "Ġthe": one visible character a byte, never a space."""
    return piece.decode("latin-1").translate(BYTE_TO_CHAR)


def readable_to_bytes(text: str) -> bytes:
    """The inverse of `bytes_to_readable`; KeyError holds a character that stands for no byte."""
    return bytes(CHAR_TO_BYTE[char] for char in text)


def readable_pair(parts: Iterable[str], where: str, given: object) -> tuple[bytes, bytes]:
    """The bytes of a merge's two readable tokens; ConfigError names `where` and what was given."""
    try:
        left, right = (readable_to_bytes(part) for part in parts)
    except (ValueError, KeyError):
        raise ConfigError(f"{where}: expected two byte-level tokens, got {given!r}") from None
    return left, right


def bpe_tokenizer(
    merges: Sequence[tuple[bytes, bytes]],
    *,
    pattern: str = "gpt2",
    special_tokens: Iterable[str] | Mapping[str, int] = (),
    ids: Sequence[int] | None = None,
    nfc: bool = False,
) -> Tokenizer:
    """A byte-level BPE tokenizer that encodes exactly as tiktoken does with the same ranks.

    Text that holds a byte without an id is refused when it is encoded.

    Args:
      merges: (left, right) in order of rank.
      pattern: a name in `PATTERNS`.
      special_tokens: strings, which take the ids after the merges; or a mapping to ids.
      ids: id of each rank, the 256 bytes first and then the merges, where it is not the rank; -1
        for a byte that has none.
      nfc: bring text to Unicode's form NFC first, as Qwen's tokenizers do; decoding then gives that
        form and not the text.
    Raises:
      ConfigError: a merge of parts that are no tokens yet, a merge that makes a token twice
        (tiktoken ranks bytes, so it cannot hold both), ids with a hole or a duplicate, an unknown
        pattern, a bad special token.
    """
    if pattern not in PATTERNS:
        raise ConfigError(f"pattern={pattern!r}: expected one of {', '.join(PATTERNS)}")
    ranks = _ranks(merges)
    if ids is None:
        ids = range(len(ranks))
    if len(ids) != len(ranks):
        raise ConfigError(f"expected {len(ranks)} ids, 256 bytes and the merges, got {len(ids)}")
    _, numbered = with_specials(ranks, special_tokens)
    special_ids = dict(special_tokens) if isinstance(special_tokens, Mapping) else numbered
    pieces = _pieces_by_id(ranks, ids, special_ids)
    rank_to_id = np.array(ids, np.int32)
    is_identity = bool((rank_to_id == np.arange(len(ranks))).all())
    incomplete = bool((rank_to_id < 0).any())
    encoding = _tiktoken_encoding(pattern, ranks)

    def encode_ordinary(text: str) -> np.ndarray:
        text = unicodedata.normalize("NFC", text) if nfc else text
        try:
            found = encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            require_unicode(text)
            raise
        except ValueError as error:  # its regex engine gives up on some million blanks in a row
            raise ConfigError(
                f"tiktoken cannot cut this text into pre-tokens by pattern={pattern} ({error}); "
                "shorten its longest run of white space"
            ) from None
        ids = found.astype(np.int32) if is_identity else rank_to_id[found]
        if incomplete and (ids < 0).any():
            raise ConfigError(
                f"text holds the byte 0x{found[ids < 0][0]:02X}, for which this tokenizer has no "
                "id; remove the character"
            )
        return ids

    content = {
        "kind": "bpe",
        "pattern": pattern,
        "merges": [f"{bytes_to_readable(a)} {bytes_to_readable(b)}" for a, b in merges],
        "special_tokens": special_ids,
    }
    if not is_identity:
        content["ids"] = rank_to_id.tolist()
    if nfc:
        content["nfc"] = True
    return Tokenizer(
        kind="bpe",
        pieces=pieces,
        special_ids=special_ids,
        unk_id=None,
        encode_ordinary=encode_ordinary,
        safe_cut=safe_cut(pattern, nfc),
        content=content,
    )


def _ranks(merges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
    ranks = {bytes([b]): b for b in range(256)}
    for number, (left, right) in enumerate(merges, 1):
        if left not in ranks or right not in ranks:
            part = bytes_to_readable(right if left in ranks else left)
            raise ConfigError(
                f"{_merge_name(number, left, right)}: {part!r} is no byte and no earlier merge "
                "makes it"
            )
        if left + right in ranks:
            raise ConfigError(
                f"{_merge_name(number, left, right)}: its token is there already with rank "
                f"{ranks[left + right]}; tiktoken ranks tokens, not pairs, so it cannot represent "
                "this tokenizer"
            )
        ranks[left + right] = len(ranks)
    return ranks


def _merge_name(number: int, left: bytes, right: bytes) -> str:
    return f"merge {number} ({bytes_to_readable(left)!r}, {bytes_to_readable(right)!r})"


def _pieces_by_id(
    ranks: dict[bytes, int], ids: Sequence[int], special_ids: Mapping[str, int]
) -> tuple[bytes, ...]:
    by_id: dict[int, bytes] = {}
    ranked = zip(ranks, ids, strict=True)
    tokens = [(piece, id) for piece, id in ranked if len(piece) > 1 or id != -1]
    tokens += [(special.encode(), id) for special, id in special_ids.items()]
    for piece, id in tokens:
        if isinstance(id, bool) or not isinstance(id, int | np.integer):
            raise ConfigError(
                f"token {bytes_to_readable(piece)!r}: expected an integer id, got {id!r}"
            )
        if id in by_id:
            raise ConfigError(
                f"id {id} is given twice, to {bytes_to_readable(by_id[id])!r} and "
                f"{bytes_to_readable(piece)!r}"
            )
        by_id[int(id)] = piece
    hole = next((i for i in range(len(tokens)) if i not in by_id), None)
    if hole is not None:
        raise ConfigError(
            f"{len(tokens)} tokens take the ids 0 to {len(tokens) - 1}; id {hole} is missing, and "
            f"id {min(by_id) if min(by_id) < 0 else max(by_id)} is outside"
        )
    return tuple(by_id[i] for i in range(len(tokens)))


def _tiktoken_encoding(pattern: str, ranks: dict[bytes, int]):
    import tiktoken

    # Special tokens are split off before: tiktoken tries overlapping ones in no stated order.
    return tiktoken.Encoding(
        f"jaxlm-{pattern}", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={}
    )
