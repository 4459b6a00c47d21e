"""Folds: scikit-learn's where it has no choice, and what holds of all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from jaxlm.evals.folds import k_fold


@pytest.mark.parametrize("num_examples, num_folds", [(10, 5), (11, 4), (3, 3)])
def test_in_order_they_are_scikit_learns(num_examples, num_folds):
    want = KFold(num_folds).split(np.zeros(num_examples))
    for ours, (train, test) in zip(k_fold(num_examples, num_folds), want, strict=True):
        np.testing.assert_array_equal(ours.train, train)
        np.testing.assert_array_equal(ours.test, test)


def test_classes_are_spread_as_in_scikit_learns():
    labels = np.sort(np.random.default_rng(0).choice(3, size=61, p=[0.7, 0.2, 0.1]))
    ours = [np.bincount(labels[f.test], minlength=3) for f in k_fold(61, 4, labels=labels)]
    split = StratifiedKFold(4).split(labels, labels)
    theirs = [np.bincount(labels[test], minlength=3) for _, test in split]
    np.testing.assert_array_equal(ours, theirs)


@given(st.data(), st.integers(2, 30), st.none() | st.integers(0, 9))
def test_every_example_is_held_out_once_and_all_is_even(data, num, seed):
    num_folds = data.draw(st.integers(2, num))
    labels = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=num, max_size=num))
    folds = k_fold(num, num_folds, seed=seed, labels=labels)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(num))
    assert len(folds) == num_folds
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(num))
    for ids in [np.zeros(num, int), *([] if labels is None else [np.array(labels)])]:
        counts = np.array([np.bincount(ids[fold.test], minlength=3) for fold in folds])
        assert np.ptp(counts, axis=0).max() <= 1


def test_a_seed_is_an_order():
    def tests(seed):
        return np.concatenate([fold.test for fold in k_fold(20, 4, seed=seed)]).tolist()

    assert tests(0) == tests(0) != tests(1)
    assert tests(None) == list(range(20)) != tests(0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: k_fold(5, 1), "num_folds=1: expected from 2 to num_examples=5"),
        (lambda: k_fold(5, 6), "num_folds=6"),
        (lambda: k_fold(5, 2, labels=[0, 1]), "examples has 5, labels has 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
