"""The order of examples as a function: a keyed permutation that can be evaluated at any index."""

import math

import numpy as np

MAX_SIZE = 2**40
NUM_ROUNDS = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64
ROUND_CONSTANTS = np.arange(1, NUM_ROUNDS + 1, dtype=np.uint64)[:, None] * GOLDEN
MULTIPLIER_A = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_B = np.uint64(0x94D049BB133111EB)
U27, U30, U31, U32 = (np.uint64(n) for n in (27, 30, 31, 32))


def permute(index: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """The place of `index` in a pseudo-random permutation of range(size) chosen by `key`.

    For each key this is a bijection of range(size); any part of it can be evaluated alone, so
    nothing is stored, shuffled or skipped to. Numbers are written as pairs (left, right) with
    0 <= left < a, 0 <= right < b and size <= a * b < size + a, where a is about sqrt(size).
    A Feistel network adds a hash of one half to the other, modulo a or b, which keeps it a
    bijection of all a * b pairs; a result outside range(size) is sent through the network again
    until it lands inside, which keeps it a bijection of range(size).

    Args:
      index: int[...] in range(size).
      size: how many examples, 1 to 2**40.
      key: any integer (taken modulo 2**64), or uint64 that broadcasts against `index`.
    Returns:
      int64[...] in range(size).
    Raises:
      ValueError: a size or an index out of range.
    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", methods 2 (cycle
      walking) and 3 (generalized Feistel); hashing as `hash_u64`.
    """
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(f"size={size} must be 1 to 2**40")
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"an index lies outside range({size})")
    key = np.broadcast_to(_as_u64(key), index.shape) if np.ndim(key) else _as_u64(key)
    place = index.astype(np.uint64).reshape(-1)
    key = key.reshape(-1)
    place = _feistel(place, size, key)
    outside = np.flatnonzero(place >= size)
    while outside.size:
        place[outside] = _feistel(place[outside], size, key if key.size == 1 else key[outside])
        outside = outside[place[outside] >= size]
    return place.astype(np.int64).reshape(index.shape)


def _feistel(place: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    num_rows = math.isqrt(size - 1) + 1
    rows, columns = np.uint64(num_rows), np.uint64(-(-size // num_rows))
    right, left = np.divmod(place, rows)
    for i, round_key in enumerate(hash_u64(key + ROUND_CONSTANTS)):
        if i % 2 == 0:
            left = (left + _round(right, round_key)) % rows
        else:
            right = (right + _round(left, round_key)) % columns
    return right * rows + left


def _round(half: np.ndarray, round_key: np.ndarray) -> np.ndarray:
    """32 hashed bits as uint64: adding a half, below 2^21, to them cannot wrap around."""
    x = (half ^ round_key) * MULTIPLIER_A
    x ^= x >> U32
    x *= MULTIPLIER_B
    x >>= U32
    return x


def hash_u64(x: np.ndarray) -> np.ndarray:
    """A bijective hash of uint64[...], at least one dimension.

    Source: Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators"; the
      constants are those of SplitMix64's output function, Stafford's variant 13.
    """
    x = (x ^ (x >> U30)) * MULTIPLIER_A
    x = (x ^ (x >> U27)) * MULTIPLIER_B
    return x ^ (x >> U31)


def epoch_key(seed: int, epoch: np.ndarray) -> np.ndarray:
    """u64[...], the key of each epoch i64[...] under a seed; any integer is a seed."""
    return hash_u64(hash_u64(_as_u64(seed)) + epoch.astype(np.uint64) * GOLDEN)


def _as_u64(number: int | np.ndarray) -> np.ndarray:
    if isinstance(number, np.ndarray):
        return np.atleast_1d(number).astype(np.uint64)
    return np.array([int(number) % 2**64], dtype=np.uint64)
