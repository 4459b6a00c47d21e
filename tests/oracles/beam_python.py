"""Beam search and exhaustive search over texts, with lists."""

import itertools


def beam_search(log_probs, width, num_tokens, stop_ids=(), length_penalty=1.0):
    """[(score, text)], best first; log_probs(text) -> list of floats, the next token's."""
    alive, ended = [(0.0, ())], []
    for _ in range(num_tokens):
        longer = [
            (total + log_p, (*text, id))
            for total, text in alive
            for id, log_p in enumerate(log_probs(text))
        ]
        longer.sort(key=lambda pair: -pair[0])
        longer = longer[: width - len(ended)]
        ended += [pair for pair in longer if pair[1][-1] in stop_ids]
        alive = [pair for pair in longer if pair[1][-1] not in stop_ids]
    return _ordered(ended + alive, length_penalty)


def every_text(log_probs, vocab_size, num_tokens, stop_ids=(), length_penalty=1.0):
    """[(score, text)] of all texts there are, best first."""
    found = {}
    for ids in itertools.product(range(vocab_size), repeat=num_tokens):
        ends = [i for i, id in enumerate(ids) if id in stop_ids]
        text = ids[: ends[0] + 1] if ends else ids
        if text not in found:
            found[text] = sum(log_probs(text[:i])[text[i]] for i in range(len(text)))
    return _ordered([(total, text) for text, total in found.items()], length_penalty)


def _ordered(pairs, length_penalty):
    scored = [(total / len(text) ** length_penalty, text) for total, text in pairs]
    return sorted(scored, key=lambda pair: -pair[0])
