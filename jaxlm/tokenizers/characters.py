"""One id for each distinct character."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from jaxlm.core.config import ConfigError
from jaxlm.tokenizers.pieces import cut_anywhere
from jaxlm.tokenizers.tokenizer import REPLACEMENT, Tokenizer, require_unicode, with_specials

NUM_SHOWN = 8


def character_tokenizer(
    characters: Iterable[str], *, unknown: str = "error", special_tokens: Iterable[str] = ()
) -> Tokenizer:
    """A tokenizer over the sorted distinct `characters`.

    Ids: characters by code point, then `<unk>` where `unknown` is "unk", then special tokens.

    Raises:
      ConfigError: no characters, something longer than one, a lone surrogate, a bad special token.
    """
    characters = sorted(set(characters))
    if not characters:
        raise ConfigError("a character tokenizer needs at least one character; the text is empty")
    if wrong := [c for c in characters if len(c) != 1]:
        raise ConfigError(f"expected single characters, got {wrong[0]!r}")
    if unknown not in ("error", "unk"):
        raise ConfigError(f"unknown={unknown!r}: expected error or unk")
    require_unicode("".join(characters))
    pieces = [c.encode("utf-8") for c in characters]
    unk_id = len(pieces) if unknown == "unk" else None
    if unk_id is not None:
        if "<unk>" in (special_tokens := tuple(special_tokens)):
            raise ConfigError("special token '<unk>': unknown=unk already adds it")
        pieces.append(REPLACEMENT)
    pieces, special_ids = with_specials(pieces, special_tokens)

    # Code point -> id, -1 for unknown; the last entry stands for all code points above.
    table = np.full(ord(characters[-1]) + 2, -1, np.int32)
    table[[ord(c) for c in characters]] = np.arange(len(characters))
    if unk_id is not None:
        table[table < 0] = unk_id

    def encode_ordinary(text: str) -> np.ndarray:
        try:
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        except UnicodeEncodeError:
            require_unicode(text)
            raise
        ids = table[np.minimum(points, len(table) - 1)]
        if unk_id is None and (strange := ids < 0).any():
            raise ConfigError(_unknown_message(points[strange]))
        return ids

    return Tokenizer(
        kind="characters",
        pieces=pieces,
        special_ids=special_ids,
        unk_id=unk_id,
        encode_ordinary=encode_ordinary,
        safe_cut=cut_anywhere,
        content={
            "kind": "characters",
            "characters": "".join(characters),
            "unknown": unknown,
            "special_tokens": list(special_ids),
        },
    )


def _unknown_message(points: np.ndarray) -> str:
    counts = Counter(points.tolist()).most_common()
    shown = ", ".join(f"{chr(p)!r} (U+{p:04X}) {n}x" for p, n in counts[:NUM_SHOWN])
    more = f" and {len(counts) - NUM_SHOWN} more" if len(counts) > NUM_SHOWN else ""
    return (
        f"the tokenizer does not know {len(counts)} of the characters in this text: {shown}{more}; "
        "remove them, or train with --config.tokenizer.unknown=unk"
    )
