"""How well ranked lists put first what is relevant, as means over queries.

A ranking is the relevance of what one query found, best first: numbers of 0 or more, of which
those above 0 are relevant. Documents of equal score are in the order they are given: sort first.
A query without anything relevant counts as 0.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.evals import inputs


def mean_reciprocal_rank(rankings: Sequence[ArrayLike]) -> float:
    """Mean of 1 / the place, from 1, of the first that is relevant.

    Raises:
      ValueError: no rankings, an empty one, or a relevance below 0; so do the others here.
    """
    first = [np.flatnonzero(relevance) for relevance in _checked(rankings)]
    return float(np.mean([1 / (1 + places[0]) if len(places) else 0.0 for places in first]))


def mean_average_precision(
    rankings: Sequence[ArrayLike], num_relevant: Sequence[int] | None = None
) -> float:
    """Mean over queries of the mean precision at the places of relevant documents.

    Args:
      num_relevant: how many there are for each query, where a ranking was cut off and may miss
        some; None: those in the ranking.
    Source: Manning, Raghavan and Schuetze 2008, "Introduction to information retrieval", 8.4.
    """
    checked = _checked(rankings)
    found = [np.flatnonzero(relevance) for relevance in checked]
    totals = [len(places) for places in found] if num_relevant is None else list(num_relevant)
    inputs.check_lengths(rankings=found, num_relevant=totals)
    averages = []
    for query, (places, total) in enumerate(zip(found, totals, strict=True)):
        if total < len(places):
            raise ValueError(
                f"num_relevant[{query}]={total}: its ranking alone has {len(places)} relevant"
            )
        precision = np.arange(1, len(places) + 1) / (1 + places)
        averages.append(precision.sum() / total if total else 0.0)
    return float(np.mean(averages))


def precision_at_k(rankings: Sequence[ArrayLike], k: int) -> float:
    """Mean share of the first k places with something relevant; places not filled have nothing."""
    _check_k(k)
    return float(np.mean([np.count_nonzero(r[:k]) / k for r in _checked(rankings)]))


def ndcg(rankings: Sequence[ArrayLike], k: int | None = None) -> float:
    """Normalised discounted cumulative gain of the first k places; None: of all.

    Sum of relevance / log2(1 + place), over that of the same documents in the best order. For
    gains of 2^relevance - 1, give those.

    Source: Jarvelin and Kekalainen 2002, "Cumulated gain-based evaluation of IR techniques", with
    the discount from the second place on.
    """
    if k is not None:
        _check_k(k)
    shares = []
    for relevance in _checked(rankings):
        best = np.sort(relevance)[::-1]
        discount = 1 / np.log2(2 + np.arange(len(relevance[:k])))
        most = float(best[:k] @ discount)
        shares.append(float(relevance[:k] @ discount) / most if most else 0.0)
    return float(np.mean(shares))


def _checked(rankings: Sequence[ArrayLike]) -> list[np.ndarray]:
    checked = [inputs.numbers(r, f"rankings[{query}]") for query, r in enumerate(rankings)]
    if not checked:
        raise ValueError("rankings: expected at least one")
    for query, relevance in enumerate(checked):
        if (relevance < 0).any():
            raise ValueError(f"rankings[{query}]: expected relevance of 0 or more")
    return checked


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
