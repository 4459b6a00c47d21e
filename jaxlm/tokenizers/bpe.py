"""Byte-pair encoding: ranks kept here, encoding by tiktoken, nothing ever downloaded."""

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
    return "".join(BYTE_TO_CHAR[b] for b in piece)


def readable_to_bytes(text: str) -> bytes:
    """The inverse of `bytes_to_readable`; KeyError holds a character that stands for no byte."""
    return bytes(CHAR_TO_BYTE[char] for char in text)


def bpe_tokenizer(
    merges: Sequence[tuple[bytes, bytes]],
    *,
    pattern: str = "gpt2",
    special_tokens: Iterable[str] | Mapping[str, int] = (),
    ids: Sequence[int] | None = None,
) -> Tokenizer:
    """A byte-level BPE tokenizer that encodes exactly as tiktoken does with the same ranks.

    Args:
      merges: (left, right) in order of rank.
      pattern: a name in `PATTERNS`.
      special_tokens: strings, which take the ids after the merges; or a mapping to ids.
      ids: id of each rank, the 256 bytes first and then the merges, where it is not the rank.
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
    given = dict(special_tokens) if isinstance(special_tokens, Mapping) else None
    _, special_ids = with_specials(ranks, given if given is not None else special_tokens)
    special_ids = given if given is not None else special_ids
    pieces = _pieces_by_id(ranks, ids, special_ids)
    rank_to_id = np.array(ids, np.int32)
    is_identity = bool((rank_to_id == np.arange(len(ranks))).all())
    encoding = _tiktoken_encoding(pattern, ranks)

    def encode_ordinary(text: str) -> np.ndarray:
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
        return found.astype(np.int32) if is_identity else rank_to_id[found]

    content = {
        "kind": "bpe",
        "pattern": pattern,
        "merges": [f"{bytes_to_readable(a)} {bytes_to_readable(b)}" for a, b in merges],
        "special_tokens": special_ids,
    }
    if not is_identity:
        content["ids"] = rank_to_id.tolist()
    return Tokenizer(
        kind="bpe",
        pieces=pieces,
        special_ids=special_ids,
        unk_id=None,
        encode_ordinary=encode_ordinary,
        safe_cut=safe_cut(pattern),
        content=content,
    )


def _ranks(merges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
    ranks = {bytes([b]): b for b in range(256)}
    for number, (left, right) in enumerate(merges, 1):
        pair = f"merge {number} ({bytes_to_readable(left)!r}, {bytes_to_readable(right)!r})"
        for part in (left, right):
            if part not in ranks:
                raise ConfigError(
                    f"{pair}: {bytes_to_readable(part)!r} is no byte and no earlier merge makes it"
                )
        if left + right in ranks:
            raise ConfigError(
                f"{pair}: its token is there already with rank {ranks[left + right]}; tiktoken "
                "ranks tokens, not pairs, so it cannot represent this tokenizer"
            )
        ranks[left + right] = len(ranks)
    return ranks


def _pieces_by_id(
    ranks: dict[bytes, int], ids: Sequence[int], special_ids: Mapping[str, int]
) -> tuple[bytes, ...]:
    by_id: dict[int, bytes] = {}
    tokens = [*zip(ranks, ids, strict=True), *((s.encode(), i) for s, i in special_ids.items())]
    for piece, token_id in tokens:
        name = bytes_to_readable(piece)
        if isinstance(token_id, bool) or not isinstance(token_id, int | np.integer):
            raise ConfigError(f"token {name!r}: expected an integer id, got {token_id!r}")
        if token_id in by_id:
            raise ConfigError(
                f"id {token_id} is given twice, to {bytes_to_readable(by_id[token_id])!r} and "
                f"{name!r}"
            )
        by_id[int(token_id)] = piece
    holes = [i for i in range(len(tokens)) if i not in by_id]
    if holes:
        raise ConfigError(
            f"{len(tokens)} tokens need the ids 0 to {len(tokens) - 1}, but id {holes[0]} is "
            f"missing and id {max(by_id)} is there"
            if max(by_id) >= len(tokens)
            else f"id {min(by_id)} is negative"
        )
    return tuple(by_id[i] for i in range(len(tokens)))


def _tiktoken_encoding(pattern: str, ranks: dict[bytes, int]):
    import tiktoken

    # Special tokens are split off before: tiktoken tries overlapping ones in no stated order.
    return tiktoken.Encoding(
        f"jaxlm-{pattern}", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={}
    )
