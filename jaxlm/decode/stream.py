"""Texts one after another, token by token, over a cache that keeps how they begin."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.arrays import Array, Params
from jaxlm.decode.decoder import decoder_of
from jaxlm.decode.filters import SamplingConfig
from jaxlm.decode.generate import DecodeState, keys_of_rows, step
from jaxlm.models.api import LanguageModel

CHUNK = 64  # tokens that are read at once
SMALLEST_CACHE = 512


class Streamer:
    """Continues texts that grow at their end, such as a conversation.

    Texts are read in chunks that begin at multiples of CHUNK, and only whole chunks that were read
    as given are kept, not what was written: so the tokens are, to the bit, those of a new
    `Streamer` with a cache as long. Two programs are compiled for each power of two that the cache
    grows to. Where a model cannot take back what it has read, every text is read anew.

    model, params: as of `generate`.
    """

    def __init__(self, model: LanguageModel, params: Params):
        self._decoder, self._params = decoder_of(model), params
        self._cache, self._size = None, 0
        self._kept = np.zeros(0, np.int32)  # ids that were read into the cache

    def stream(
        self,
        ids: Sequence[int] | np.ndarray,
        key: Array,
        *,
        num_tokens: int,
        sampling: SamplingConfig,
    ) -> Iterator[int]:
        """Yields up to `num_tokens` ids that follow `ids`, each as soon as it is drawn.

        The one at position t is drawn as the first row of `generate` draws it.

        Args:
          sampling: as `traced_sampling` gives it.
        """
        prompt = np.asarray(ids, np.int32)
        read, decoder = prompt[:-1], self._decoder  # `step` reads the last
        start = self._open(read, len(prompt) + num_tokens)
        for at in range(start, len(read), CHUNK):
            part = read[at : at + CHUNK]
            chunk = np.zeros((1, CHUNK), np.int32)
            chunk[0, : len(part)] = part
            length = np.array([len(part)], np.int32)
            self._cache = _read(self._params, chunk, length, self._cache, extend=decoder.extend)
        if decoder.take_back is not None:
            self._kept = read
        seen = None
        if sampling.repetition_penalty is not None:
            seen = np.zeros((1, decoder.vocab_size), bool)
            seen[0, prompt] = True
        state, row_keys = DecodeState(prompt[-1:], self._cache, seen), keys_of_rows(key, 1)
        for _ in range(num_tokens):
            token, state = _step(self._params, state, row_keys, sampling, extend=decoder.extend)
            self._cache = state.cache  # the one before was given away
            yield int(token[0])

    def _open(self, read: np.ndarray, length: int) -> int:
        """Makes room for `length` tokens in the cache; how many of `read` it holds already."""
        size = max(SMALLEST_CACHE, self._size, 1 << (length - 1).bit_length())
        n = min(len(read), len(self._kept))
        different = np.flatnonzero(read[:n] != self._kept[:n])
        shared = int(different[0]) if different.size else n
        shared = shared // CHUNK * CHUNK
        if size > self._size or not shared:
            # Layers of an empty cache may share an array, which cannot be given away twice.
            self._cache = jax.tree.map(jnp.copy, self._decoder.init_cache(1, size))
            self._size, shared = size, 0
        elif self._decoder.take_back is not None:  # else nothing was kept
            self._cache = self._decoder.take_back(self._cache, np.array([shared], np.int32))
        self._kept = self._kept[:shared]
        return shared


@functools.partial(jax.jit, static_argnames="extend", donate_argnames="cache")
def _read(params, chunk, length, cache, *, extend):
    return extend(params, chunk, cache, lengths=length)[1]


@functools.partial(jax.jit, static_argnames="extend", donate_argnames="state")
def _step(params, state, row_keys, sampling, *, extend):
    return step(extend, params, state, row_keys, sampling)
