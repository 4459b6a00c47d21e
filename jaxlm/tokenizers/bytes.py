"""One id for each byte of UTF-8."""

from collections.abc import Iterable

import numpy as np

from jaxlm.tokenizers.pieces import cut_anywhere
from jaxlm.tokenizers.tokenizer import Tokenizer, require_unicode, with_specials


def byte_tokenizer(*, special_tokens: Iterable[str] = ()) -> Tokenizer:
    """Ids 0 to 255 are the bytes, special tokens follow. Raises ConfigError for a bad special."""
    pieces, special_ids = with_specials([bytes([b]) for b in range(256)], special_tokens)
    return Tokenizer(
        kind="bytes",
        pieces=pieces,
        special_ids=special_ids,
        unk_id=None,
        encode_ordinary=_encode_ordinary,
        safe_cut=cut_anywhere,
        content={"kind": "bytes", "special_tokens": list(special_ids)},
    )


def _encode_ordinary(text: str) -> np.ndarray:
    try:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
    except UnicodeEncodeError:
        require_unicode(text)
        raise
