"""BLEU and ROUGE on tokens: how many of a text's n-grams are in a reference.

A text is a sequence of tokens, words or ids. Both measures depend on how it was cut into them, so
for a number to set beside a paper's call sacrebleu or rouge-score, which do that as papers do;
cut as they cut, these give the same.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

from jaxlm.evals import inputs

Tokens = Sequence[Hashable]
Smoothing = Literal["none", "floor", "add-k", "exp"]
_FLOOR, _K = 0.1, 1  # sacrebleu's


class Bleu(NamedTuple):
    """score: 0 to 100. precisions: of 1-grams, 2-grams, ..., 0 to 1, smoothed."""

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int


class Overlap(NamedTuple):
    """Shares of the hypothesis, of the reference, and their harmonic mean; 0 of nothing."""

    precision: float
    recall: float
    f1: float


def corpus_bleu(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    max_order: int = 4,
    smoothing: Smoothing = "exp",
) -> Bleu:
    """BLEU of a corpus: counts are added over all texts before anything is divided.

        score = 100 * penalty * (p_1 ... p_max)^(1 / max)
        penalty = min(1, exp(1 - reference_length / hypothesis_length))

    Of several references of a text the length closest to its own counts, the shorter of two.

    Args:
      references: for each hypothesis one or more.
      smoothing: of precisions whose count of matches is 0. none: the score is 0. floor: a count
        of 0.1. exp: 1/2, 1/4, ... for the first, second, ... such order. add-k: 1 is added to
        matches and n-grams of every order from 2 on. With no 1-gram in common the score is 0 all
        the same; with all but add-k also where no hypothesis is as long as the highest order.
    Raises:
      ValueError: no hypotheses, different lengths, a hypothesis without reference, max_order < 1
        or another smoothing.
    Source: Papineni et al. 2002, "BLEU"; Chen and Cherry 2014, "A systematic comparison of
    smoothing techniques for sentence-level BLEU"; conventions of Post 2018 (sacrebleu).
    """
    _check_texts(hypotheses, references)
    if max_order < 1:
        raise ValueError(f"max_order={max_order}: expected at least 1")
    if smoothing not in ("none", "floor", "add-k", "exp"):
        raise ValueError(f"smoothing={smoothing!r}: expected none, floor, add-k or exp")
    matched, total, length, reference_length = [0] * max_order, [0] * max_order, 0, 0
    for hypothesis, several in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        reference_length += min(
            (abs(len(reference) - len(hypothesis)), len(reference)) for reference in several
        )[1]
        for n in range(1, max_order + 1):
            found, allowed = _ngrams(hypothesis, n), Counter()
            for reference in several:
                allowed |= _ngrams(reference, n)
            matched[n - 1] += (found & allowed).total()
            total[n - 1] += found.total()
    precisions = _smoothed(matched, total, smoothing)
    penalty = math.exp(min(0.0, 1 - reference_length / length)) if length else 0.0
    score = 0.0
    if matched[0] and min(precisions) > 0:
        score = 100 * penalty * math.exp(sum(map(math.log, precisions)) / max_order)
    return Bleu(score, tuple(precisions), penalty, length, reference_length)


def rouge_n(hypothesis: Tokens, reference: Tokens, n: int) -> Overlap:
    """The n-grams that two texts share, each as often as in the one that has fewer of it.

    Raises:
      ValueError: n < 1.
    Source: Lin 2004, "ROUGE", section 2.
    """
    if n < 1:
        raise ValueError(f"n={n}: expected at least 1")
    ours, theirs = _ngrams(hypothesis, n), _ngrams(reference, n)
    return _overlap((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(hypothesis: Tokens, reference: Tokens) -> Overlap:
    """The longest sequence of tokens that both texts have in this order, gaps allowed.

    Of whole texts; not the union over sentences that is known as ROUGE-Lsum.

    Source: Lin 2004, "ROUGE", section 3.1, with equal weight of precision and recall.
    """
    row = [0] * (len(reference) + 1)
    for token in hypothesis:
        before, row = row, [0]
        for place, other in enumerate(reference):
            longer = before[place] + 1 if token == other else max(row[-1], before[place + 1])
            row.append(longer)
    return _overlap(row[-1], len(hypothesis), len(reference))


def _check_texts(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    inputs.check_lengths(hypotheses=hypotheses, references=references)
    if not hypotheses:
        raise ValueError("hypotheses: expected at least one")
    for place, several in enumerate(references):
        if isinstance(several, str) or any(isinstance(reference, str) for reference in several):
            raise ValueError(f"references[{place}]: expected lists of tokens, got text; split it")
        if isinstance(hypotheses[place], str):
            raise ValueError(f"hypotheses[{place}]: expected a list of tokens, got text; split it")
        if not several:
            raise ValueError(f"references[{place}]: expected at least one reference")


def _smoothed(matched: list[int], total: list[int], smoothing: Smoothing) -> list[float]:
    precisions, share = [], 1.0
    for order, (right, count) in enumerate(zip(matched, total, strict=True)):
        if smoothing == "add-k" and order > 0:
            right, count = right + _K, count + _K
        if not count:
            precisions.append(0.0)
            continue
        if right == 0 and smoothing == "exp":
            share /= 2
            right = share
        elif right == 0 and smoothing == "floor":
            right = _FLOOR
        precisions.append(right / count)
    return precisions


def _ngrams(tokens: Tokens, n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _overlap(shared: int, num_ours: int, num_theirs: int) -> Overlap:
    precision = shared / num_ours if num_ours else 0.0
    recall = shared / num_theirs if num_theirs else 0.0
    f1 = 2 * shared / (num_ours + num_theirs) if shared else 0.0
    return Overlap(precision, recall, f1)
