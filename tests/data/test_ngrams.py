"""fastText's hashes: published values, the signed bytes, n-grams by integers of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.ngrams import bags, buckets, word_hash


@pytest.mark.parametrize(
    ("word", "published"),  # Fowler, Noll and Vo's test vectors of 32-bit FNV-1a
    [("", 0x811C9DC5), ("a", 0xE40C292C), ("b", 0xE70C2DE5), ("foobar", 0xBF9CF968)],
)
def test_the_hash_of_ascii_is_the_published_one(word, published):
    assert word_hash(word) == published


def signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) else value


def hash_in_c(word):
    """`h = h ^ uint32_t(int8_t(c)); h = h * 16777619` in Python's integers."""
    h = 2166136261
    for byte in word.encode():
        h ^= signed(byte, 8) % (1 << 32)
        h = h * 16777619 % (1 << 32)
    return h


@given(st.text(max_size=12))
def test_bytes_are_signed(word):
    assert word_hash(word) == hash_in_c(word)


def test_a_signed_byte_is_not_the_published_hash():
    plain = 2166136261
    for byte in "é".encode():
        plain = (plain ^ byte) * 16777619 % (1 << 32)
    assert word_hash("é") != plain


SIZES = {"num_words": 101, "num_ngrams": 997}


@given(
    st.lists(st.sampled_from(["the", "soup", "é", "not", "fine"]), max_size=7), st.integers(1, 4)
)
def test_buckets_are_those_of_the_loop(words, max_n):
    """addWordNgrams of dictionary.cc: uint64 sums of int32 hashes, sign extended."""
    expected = [hash_in_c(word) % 101 for word in words]
    hashes = [signed(hash_in_c(word), 32) for word in words]
    for n in range(2, max_n + 1):
        for start in range(len(words) - n + 1):
            h = hashes[start] % (1 << 64)
            for other in hashes[start + 1 : start + n]:
                h = (h * 116049371 + other) % (1 << 64)
            expected.append(101 + h % 997)
    found = buckets(" ".join(words), **SIZES, max_n=max_n)
    assert found.dtype == np.int32 and found.tolist() == expected


def test_bags_are_padded_to_a_power_of_two():
    ids, weights = bags(["a b c", "", "a"], **SIZES, max_n=2)
    assert ids.shape == weights.shape == (3, 8) and weights.dtype == np.float32
    assert weights.sum(1).tolist() == [5, 0, 1]
    np.testing.assert_array_equal(ids[0, :5], buckets("a b c", **SIZES, max_n=2))
    assert (ids[weights == 0] == 0).all()
    assert bags([""], **SIZES, max_n=2)[0].shape == (1, 1)
