"""Which examples are held out, in each of k turns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxlm.evals import inputs


class Fold(NamedTuple):
    """i64[...], rising: examples to train on and to test on; together all of them."""

    train: np.ndarray
    test: np.ndarray


def k_fold(
    num_examples: int, num_folds: int, *, seed: int | None = None, labels: ArrayLike | None = None
) -> list[Fold]:
    """Cuts examples into parts whose sizes differ by at most 1; each is held out once.

    Args:
      seed: of the order in which examples are dealt; None: as they come, in runs.
      labels: int[num_examples], where each class is to be spread over the parts as evenly, too.
    Raises:
      ValueError: num_folds < 2, fewer examples than folds, or labels of another length.
    """
    if not 2 <= num_folds <= num_examples:
        raise ValueError(f"num_folds={num_folds}: expected from 2 to num_examples={num_examples}")
    order = np.arange(num_examples)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(num_examples)
    if labels is None:
        parts = np.array_split(order, num_folds)
    else:
        labels = inputs.class_ids(labels, "labels")
        inputs.check_lengths(examples=order, labels=labels)
        # Class by class, dealt out like cards: no part gets two more than another.
        order = order[np.argsort(labels[order], kind="stable")]
        parts = [order[fold::num_folds] for fold in range(num_folds)]
    every = np.arange(num_examples)
    return [Fold(np.setdiff1d(every, part), np.sort(part)) for part in parts]
