"""Texts one after another, token by token, over a cache that keeps how they begin."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.decode.filters import SamplingConfig
from jaxlm.decode.generate import DecodeState, step
from jaxlm.models.api import LanguageModel

CHUNK = 64  # tokens that are read at once
SMALLEST_CACHE = 512


class Streamer:
    """Continues texts that grow at their end, such as a conversation.

    Texts are read in chunks that begin at multiples of CHUNK, and only whole chunks that were read
    as given are kept, not what was written: so the tokens are, to the bit, those of a new
    `Streamer` with a cache as long. Three programs are compiled for each power of two that the
    cache grows to.

    model: its cache has a `length` i32[B] that may be lowered, as KVCache. params: as `generate`.
    """

    def __init__(self, model: LanguageModel, params: Params):
        self._model, self._params = model, params
        self._cache, self._size = None, 0
        self._kept = np.zeros(0, np.int32)  # ids, whole chunks of them, that the cache holds

    def stream(
        self,
        ids: Sequence[int] | np.ndarray,
        key: Array,
        *,
        num_tokens: int,
        sampling: SamplingConfig,
    ) -> Iterator[int]:
        """Yields up to `num_tokens` ids that follow `ids`, each as soon as it is drawn.

        The one at position t is drawn with fold_in(fold_in(key, 0), t), as by `generate`.
        """
        prompt = np.asarray(ids, np.int32)
        read = prompt[:-1]  # `step` reads the last
        sampling = jax.tree.map(np.float32, sampling)
        row_keys = jax.random.fold_in(key, 0)[None]
        cache, start = self._open(read, len(prompt) + num_tokens)
        for at in range(start, len(read), CHUNK):
            chunk = np.zeros((1, CHUNK), np.int32)
            part = read[at : at + CHUNK]
            chunk[0, : len(part)] = part
            cache = _read(self._params, chunk, cache, np.int32([at]), extend=self._model.extend)
            self._cache = cache  # the one before was given away
        self._kept = read[: len(read) // CHUNK * CHUNK]
        state = DecodeState(
            prompt[-1:], cache.replace(length=np.array([len(read)], np.int32)), None
        )
        for _ in range(num_tokens):
            token, state = _step(self._params, state, row_keys, sampling, extend=self._model.extend)
            self._cache = state.cache
            yield int(token[0])

    def _open(self, read: np.ndarray, length: int):
        """A cache for `length` tokens, and how many of `read` it holds already."""
        size = max(SMALLEST_CACHE, 1 << (length - 1).bit_length())
        if size > self._size:
            # Layers of an empty cache may share an array, which cannot be given away twice.
            self._cache = jax.tree.map(jnp.copy, self._model.init_cache(1, size))
            self._size = size
            self._kept = self._kept[:0]
        n = min(len(read), len(self._kept))
        different = np.flatnonzero(read[:n] != self._kept[:n])
        shared = int(different[0]) if different.size else n
        return self._cache, shared // CHUNK * CHUNK


@functools.partial(jax.jit, static_argnames="extend", donate_argnames="cache")
def _read(params, chunk, cache, length, *, extend):
    return extend(params, chunk, cache.replace(length=length))[1]


@functools.partial(jax.jit, static_argnames="extend", donate_argnames="state")
def _step(params, state, row_keys, sampling, *, extend):
    return step(extend, params, state, row_keys, sampling)
