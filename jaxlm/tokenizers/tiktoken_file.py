"""A BPE tokenizer from and to tiktoken's ranks: a line "base64 of the token's bytes, id" each."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.bpe import bpe_tokenizer, bytes_to_readable
from jaxlm.tokenizers.saved import read_text, write_text
from jaxlm.tokenizers.tokenizer import Tokenizer


def read_tiktoken_ranks(
    path: str | Path,
    *,
    pattern: str = "gpt2",
    special_tokens: Iterable[str] | Mapping[str, int] = (),
) -> Tokenizer:
    """The tokenizer that tiktoken makes of the file; its ranks are the ids.

    Args:
      pattern, special_tokens: as `bpe_tokenizer`; the file says nothing of them.
    Raises:
      ConfigError: no such file, a line out of form, a rank or token given twice, a rank or byte
        left out, or a token that no two tokens of lower rank make, which tiktoken can only find
        where it is a whole pre-token; names the line, rank or token.
    """
    ranks = _read_ranks(path)
    by_rank = sorted(ranks, key=ranks.__getitem__)
    hole = next((n for n, token in enumerate(by_rank) if ranks[token] != n), None)
    if hole is not None:
        raise ConfigError(f"{path}: rank {hole} is missing, and {ranks[by_rank[hole]]} is there")
    singles = [bytes([b]) for b in range(256)]
    if missing := [single for single in singles if single not in ranks]:
        raise ConfigError(f"{path}: no token for the byte 0x{missing[0].hex()}")
    merged = [token for token in by_rank if len(token) > 1]
    merges = []
    for token in merged:
        pair = _last_pair(token, ranks)
        if pair is None:
            raise ConfigError(
                f"{path}: no two tokens of lower rank make {bytes_to_readable(token)!r} (rank "
                f"{ranks[token]}), so it is no byte-pair encoding"
            )
        merges.append(pair)
    try:
        return bpe_tokenizer(
            merges,
            pattern=pattern,
            special_tokens=special_tokens,
            ids=[ranks[token] for token in (*singles, *merged)],
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_tiktoken_ranks(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes what `tiktoken.load.load_tiktoken_bpe` reads; special tokens are no part of it.

    Raises:
      ConfigError: not a BPE tokenizer, ids that are no ranks (tiktoken ranks merges by their ids,
        from 0 and without holes), or a file that cannot be written.
    """
    if tokenizer.kind != "bpe":
        raise ConfigError(f"{path}: tiktoken has no tokenizers of kind={tokenizer.kind}")
    special_ids = set(tokenizer.special_ids.values())
    num_tokens = tokenizer.vocab_size - len(special_ids)
    merged = tokenizer.content.get("ids", range(num_tokens))[256:]
    if special_ids & set(range(num_tokens)) or list(merged) != sorted(merged):
        raise ConfigError(
            f"{path}: tiktoken cannot hold this tokenizer: its ids are not in the order of its "
            "merges, with the special tokens last"
        )
    lines = [
        f"{base64.b64encode(piece).decode()} {id}\n"
        for id, piece in enumerate(tokenizer.pieces[:num_tokens])
    ]
    write_text(path, "".join(lines))


def _read_ranks(path: str | Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    lines: dict[int, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line:
            continue
        try:
            encoded, rank = line.split(" ")
            token, rank = base64.b64decode(encoded, validate=True), int(rank)
            if not token or rank < 0:
                raise ValueError
        except (ValueError, binascii.Error):
            raise ConfigError(
                f"{path} line {number}: expected a token in base64 and its rank, got {line[:80]!r}"
            ) from None
        if token in ranks or rank in lines:
            what = f"token {bytes_to_readable(token)!r}" if token in ranks else f"rank {rank}"
            first = lines[ranks.get(token, rank)]
            raise ConfigError(f"{path} line {number}: {what} is there already, in line {first}")
        ranks[token], lines[rank] = rank, number
    return ranks


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that are joined last when `token` is encoded with the ranks below its own."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        lowest = min(joined)
        if lowest >= ranks[token]:
            return None
        i = joined.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    left, right = parts
    return left, right
