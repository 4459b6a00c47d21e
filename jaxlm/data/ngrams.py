"""Words and word n-grams of a text as numbers of buckets, by the hashes of fastText.

Source: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification", section 2.2; the
hashes are those of fastText's dictionary.cc. fastText looks words up in a dictionary and hashes
n-grams only. Here words have buckets, too, so there is nothing to keep beside two numbers; and no
end of line is added to a text.
"""

import functools
from collections.abc import Sequence

import numpy as np

OFFSET, PRIME = 2_166_136_261, 16_777_619  # of 32-bit FNV-1a
NGRAM_FACTOR = np.uint64(116_049_371)


@functools.lru_cache(maxsize=1 << 16)
def word_hash(word: str) -> int:
    """32-bit FNV-1a over the UTF-8 bytes, as fastText computes it: its bytes are signed, so one
    from 128 on flips the upper 24 bits, too. Of ASCII it is the published hash."""
    h = OFFSET
    for byte in word.encode():
        h = ((h ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * PRIME) & 0xFFFFFFFF
    return h


def buckets(text: str, *, num_words: int, num_ngrams: int, max_n: int) -> np.ndarray:
    """i32[...], the bucket of each word, in range(num_words), then of each n-gram of 2 to max_n
    words, in the num_ngrams after them. Words are what white space parts; the same one counts as
    often as it stands there.

    An n-gram's hash is h = h * 116049371 + (hash of the next word) in 64 bits, the words' hashes
    taken as signed 32-bit numbers.
    """
    words = np.array([word_hash(word) for word in text.split()], np.uint32)
    found = [words % np.uint32(num_words)]
    signed = words.view(np.int32).astype(np.int64).view(np.uint64)
    h = signed
    for n in range(2, max_n + 1):
        h = h[:-1] * NGRAM_FACTOR + signed[n - 1 :]
        found.append(num_words + h % np.uint64(num_ngrams))
    return np.concatenate(found).astype(np.int32)


def bags(texts: Sequence[str], **options: int) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of each text in a row: i32[n, L], and f32[n, L], 1 where there is one.

    L is a power of two, so that a program for rows of L is seldom compiled again.

    Args:
      options: as of `buckets`.
    """
    rows = [buckets(text, **options) for text in texts]
    longest = max((len(row) for row in rows), default=1)
    length = 1 << max(longest - 1, 0).bit_length()
    ids, weights = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length))
    for i, row in enumerate(rows):
        ids[i, : len(row)], weights[i, : len(row)] = row, 1
    return ids, weights.astype(np.float32)
