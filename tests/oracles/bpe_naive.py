"""Byte-pair encoding as the definition reads, with everything recounted at every step."""

from collections import Counter


def merge_pair(parts, pair):
    """`parts` with every occurrence of `pair` joined, from the left."""
    merged, i = [], 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            merged.append(parts[i] + parts[i + 1])
            i += 2
        else:
            merged.append(parts[i])
            i += 1
    return merged


def train(word_counts, num_merges):
    """(merges, skipped pairs): most frequent first, ties to the greatest pair of byte strings."""
    words = {word: [bytes([b]) for b in word] for word in word_counts}
    tokens = {bytes([b]) for b in range(256)}
    merges, skipped = [], set()
    while len(merges) < num_merges:
        counts = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:], strict=False):
                counts[pair] += word_counts[word]
        for pair in skipped:
            counts.pop(pair, None)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        if best[0] + best[1] in tokens:
            skipped.add(best)
            continue
        tokens.add(best[0] + best[1])
        merges.append(best)
        words = {word: merge_pair(parts, best) for word, parts in words.items()}
    return merges, len(skipped)


def encode_by_merges(word, merges):
    """The tokens of a word when every merge, in order, is applied wherever it can be."""
    ranks = merges if isinstance(merges, dict) else {pair: i for i, pair in enumerate(merges)}
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [p for p in zip(parts, parts[1:], strict=False) if p in ranks]
        if not pairs:
            return parts
        parts = merge_pair(parts, min(pairs, key=ranks.__getitem__))


def encode_by_ranks(word, ranks):
    """The tokens of a word when the adjacent pair whose joined bytes rank lowest is joined first.

    tiktoken's rule: `ranks` maps token bytes to rank, and the leftmost of equal ranks goes first.
    """
    parts = [bytes([b]) for b in word]
    while True:
        found = [
            (ranks[a + b], i)
            for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in ranks
        ]
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
