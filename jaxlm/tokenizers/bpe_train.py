"""Byte-pair merges from word counts, exactly: the most frequent pair wins at every step.

The words lie one after another in flat arrays, each position holding a symbol and links to its
neighbours, so a merge is a few array operations over the places where its pair occurs. Two facts
keep the bookkeeping small. A new pair always contains the new symbol, so the count of a pair only
falls after the merge that made it: a count in the heap is an upper bound, and is recounted when
it reaches the top. And the places of a pair are all known when it is made: later merges only
remove some, which a recount notices.

Source: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword
Units", algorithm 1, over bytes.
"""

import heapq
from collections.abc import Callable, Mapping

import numpy as np

_BORDER, _GONE = -1, -2  # in place of a symbol: between words, and merged into its left neighbour
_INVERTED = bytes(255 - b for b in range(256))


def train_merges(
    word_counts: Mapping[bytes, int],
    num_merges: int,
    on_merge: Callable[[int], None] | None = None,
) -> list[tuple[bytes, bytes]]:
    """The first `num_merges` merges, fewer where the words hold no further pair.

    A pair's count is the number of places where it is adjacent, times the count of the word, so
    "aaa" holds (a, a) twice. Ties go to the lexicographically greatest (left, right) of byte
    strings. No two merges make the same token: no merge crosses the borders of what becomes a
    token, so inside them equal bytes were merged alike wherever they stand.

    Args:
      word_counts: count of each pre-token; merges stay inside one.
      on_merge: called with the number of merges after each.
    Returns:
      (left, right) bytes in order of merging.
    """
    symbols, weights = _flatten(word_counts)
    size = len(symbols)
    following = np.arange(1, size + 1, dtype=np.intp)
    previous = np.arange(-1, size - 1, dtype=np.intp)
    pieces = [bytes([b]) for b in range(256)]
    keys = [_descending(piece) for piece in pieces]
    heap = _first_pairs(symbols, weights, keys)
    merges: list[tuple[bytes, bytes]] = []

    while heap and len(merges) < num_merges:
        bound, left_key, right_key, left, right, places = heap[0]
        places = places[(symbols[places] == left) & (symbols[following[places]] == right)]
        count = int(np.add.reduce(weights[places]))
        if count != -bound:
            if count:
                heapq.heapreplace(heap, (-count, left_key, right_key, left, right, places))
            else:
                heapq.heappop(heap)
            continue
        heapq.heappop(heap)
        new = len(pieces)
        merges.append((pieces[left], pieces[right]))
        if on_merge:
            on_merge(len(merges))
        pieces.append(pieces[left] + pieces[right])
        keys.append(_descending(pieces[new]))

        if left == right:
            places = _without_overlaps(places, following)
        eaten = following[places]
        after = following[eaten]
        symbols[places] = new
        symbols[eaten] = _GONE
        following[places] = after
        previous[after] = places
        before = previous[places]
        # Pairs (x, new) begin at `before`, pairs (new, y) at `places`; (new, new) is counted once,
        # as a pair of the second sort.
        x, y = symbols[before], symbols[after]
        has_x, has_y = (x >= 0) & (x != new), y >= 0
        num_x = np.count_nonzero(has_x)
        partners = np.concatenate([x[has_x], y[has_y]])
        if not len(partners):
            continue
        starts = np.concatenate([before[has_x], places[has_y]])
        side = partners.copy()
        side[num_x:] += new + 1  # the second sort after the first
        order = side.argsort(kind="stable")
        side, partners, starts = side[order], partners[order], starts[order]
        is_first = np.ones(len(side), bool)
        np.not_equal(side[1:], side[:-1], out=is_first[1:])
        firsts = is_first.nonzero()[0]
        totals = np.add.reduceat(weights[starts], firsts).tolist()
        ends = [*firsts[1:].tolist(), len(side)]
        for first, end, partner, total in zip(
            firsts.tolist(), ends, partners[firsts].tolist(), totals, strict=True
        ):
            pair = (partner, new) if first < num_x else (new, partner)
            heapq.heappush(heap, (-total, keys[pair[0]], keys[pair[1]], *pair, starts[first:end]))
    return merges


def _flatten(word_counts: Mapping[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """Symbols int32 and counts int64 by position, a border before, between and after words."""
    words = [word for word in word_counts if len(word) > 1]
    lengths = np.array([len(word) for word in words], np.int64)
    counts = np.array([word_counts[word] for word in words], np.int64)
    symbols = np.full(int(lengths.sum()) + len(words) + 1, _BORDER, np.int32)
    weights = np.zeros(len(symbols), np.int64)
    inside = np.ones(len(symbols), bool)
    inside[0] = False
    inside[np.cumsum(lengths + 1)] = False
    symbols[inside] = np.frombuffer(b"".join(words), np.uint8)
    weights[inside] = np.repeat(counts, lengths)
    return symbols, weights


def _first_pairs(symbols: np.ndarray, weights: np.ndarray, keys: list[str]) -> list[tuple]:
    """The heap of all pairs of bytes: (-count, tie keys, left, right, places)."""
    places = np.flatnonzero((symbols[:-1] >= 0) & (symbols[1:] >= 0))
    if not len(places):
        return []
    pairs = symbols[places] * 256 + symbols[places + 1]
    order = np.argsort(pairs.astype(np.uint16), kind="stable")
    pairs, places = pairs[order], places[order]
    firsts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    totals = np.add.reduceat(weights[places], firsts).tolist()
    heap = []
    for pair, total, where in zip(
        pairs[firsts].tolist(), totals, np.split(places, firsts[1:]), strict=True
    ):
        left, right = divmod(pair, 256)
        heap.append((-total, keys[left], keys[right], left, right, where))
    heapq.heapify(heap)
    return heap


def _descending(piece: bytes) -> str:
    """A key that sorts ascending where byte strings sort descending; no key begins another."""
    return piece.translate(_INVERTED).decode("latin-1") + "\u0100"


def _without_overlaps(places: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Every other place of each chain of overlapping ones, from the left, as in aaaa -> (aa)(aa).

    Args:
      places: ascending.
    """
    chained = np.concatenate([[False], following[places[:-1]] == places[1:]])
    index = np.arange(len(places))
    chain_start = np.maximum.accumulate(np.where(chained, 0, index))
    return places[(index - chain_start) % 2 == 0]
