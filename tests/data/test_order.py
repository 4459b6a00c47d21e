"""permute: a bijection for each size and key, evaluated anywhere, without visible structure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxlm.data.order import epoch_key, hash_u64, permute

KEYS = st.integers(-(2**70), 2**70)


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 4096, 10_007])
@pytest.mark.parametrize("key", [0, 1, -1, 2**64 - 1])
def test_bijection_of_every_size(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), KEYS)
def test_bijection_of_any_size_and_key(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(deadline=None, max_examples=40)
@given(st.integers(2**20, 2**40), KEYS, st.integers(0, 2**20))
def test_large_sizes_stay_inside_and_do_not_collide(size, key, seed):
    index = np.unique(np.random.default_rng(seed).integers(size, size=2000))
    place = permute(index, size, key)
    assert place.min() >= 0 and place.max() < size
    assert len(np.unique(place)) == len(index)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3000), KEYS, st.data())
def test_any_part_is_the_same_part_of_the_whole(size, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    assert np.array_equal(permute(index, size, key), permute(np.arange(size), size, key)[index])


def test_an_array_of_keys_equals_one_key_at_a_time():
    keys = np.array([3, 2**63 + 5, 0], np.uint64)
    index = np.arange(12).reshape(4, 3)
    together = permute(index, 12, keys)
    for column, key in enumerate(keys):
        assert np.array_equal(together[:, column], permute(index[:, column], 12, int(key)))


def test_different_keys_differ():
    index = np.arange(1000)
    orders = {permute(index, 1000, key).tobytes() for key in range(200)}
    assert len(orders) == 200


def test_two_keys_agree_as_rarely_as_chance():
    # Random permutations agree in about one place, whatever the size (Poisson with mean 1).
    agreements = [
        (permute(np.arange(997), 997, key) == permute(np.arange(997), 997, key + 1)).sum()
        for key in range(300)
    ]
    assert abs(np.mean(agreements) - 1) < 5 / np.sqrt(300)


@pytest.mark.parametrize("size", [2, 3, 7, 10, 31, 100])
def test_each_place_is_equally_likely_over_keys(size):
    keys = np.arange(400 * size, dtype=np.uint64)
    for index in (0, size - 1):
        place = permute(np.full(len(keys), index), size, keys)
        counts = np.bincount(place, minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_two_examples_meet_in_each_pair_of_places_equally_often():
    size, keys = 40, np.arange(100_000, dtype=np.uint64)
    first, second = (permute(np.full(len(keys), i), size, keys) for i in (0, 1))
    counts = np.bincount(first * size + second, minlength=size**2).reshape(size, size)
    assert np.trace(counts) == 0
    assert stats.chisquare(counts[~np.eye(size, dtype=bool)]).pvalue > 1e-4


def test_neighbours_are_scattered():
    size = 100_000
    place = permute(np.arange(size), size, 5)
    for other in (np.arange(size), np.roll(place, 1)):
        assert abs(np.corrcoef(place, other)[0, 1]) < 4 / np.sqrt(size)
    for tenth in np.array_split(place, 10):  # each stretch of an epoch sees the whole corpus
        counts = np.histogram(tenth, bins=20, range=(0, size))[0]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_hash_is_splitmix64():
    # The first outputs of SplitMix64 from state 1234567, as printed by its published C code.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + (i + 1) * golden) % 2**64 for i in range(3)]
    assert hash_u64(np.array(states, np.uint64)).tolist() == expected


def test_epoch_keys_are_distinct():
    keys = np.concatenate([epoch_key(seed, np.arange(1000)) for seed in range(-5, 20)])
    assert len(np.unique(keys)) == len(keys)


@pytest.mark.parametrize("size", [0, -1, 2**40 + 1])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="size"):
        permute(np.zeros(1, int), size, 0)


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(ValueError, match="range"):
        permute(np.array([index]), 10, 0)
