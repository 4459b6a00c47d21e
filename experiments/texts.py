"""Real text for studies: ids in memory, and the batches of many lanes."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.batches import Batch, Split, batch_at, evaluation_batches, split_from_array
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer


class Text(NamedTuple):
    """A text as ids: its tokenizer, a part to train on and a part to validate on."""

    tokenizer: Tokenizer
    train: Split
    validation: Split
    fingerprint: str


@functools.cache
def plays(kind: str = "characters", val_fraction: float = 0.1) -> Text:
    """The bundled plays; kind: characters or bytes. The last `val_fraction` validates."""
    corpus = open_corpus(DataConfig())
    text = "\n".join("".join(pieces) for pieces in corpus.documents())
    return as_text(text, kind, val_fraction, corpus.fingerprint)


def as_text(text: str, kind: str, val_fraction: float, fingerprint: str) -> Text:
    """`text` cut in two and encoded."""
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind), [text])
    ids = tokenizer.encode(text)
    cut = int(len(ids) * (1 - val_fraction))
    return Text(tokenizer, split_from_array(ids[:cut]), split_from_array(ids[cut:]), fingerprint)


def lane_batches(
    split: Split, seeds: Sequence[int], *, batch_size: int, context_length: int
) -> Callable[[int, int], Batch]:
    """(first step, last step + 1) -> Batch [P, steps, B, S], as `train_population` reads it.

    Lane p sees the text in the order of seeds[p]; lanes of one seed see the same.
    """

    def inputs(first: int, last: int) -> Batch:
        return lanes_at(range(first, last))

    def lanes_at(steps: Iterable[int]) -> Batch:
        steps = list(steps)
        by_seed = {
            seed: _stack(
                batch_at(split, seed, n, batch_size=batch_size, context_length=context_length)
                for n in steps
            )
            for seed in dict.fromkeys(seeds)
        }
        return _stack(by_seed[seed] for seed in seeds)

    return inputs


def validation_batches(
    split: Split, *, num_batches: int, batch_size: int, context_length: int
) -> Batch:
    """The first batches of a validation text, [num_batches, B, S]."""
    batches = evaluation_batches(split, batch_size=batch_size, context_length=context_length)
    return _stack(batch for batch, _ in zip(batches, range(num_batches), strict=False))


def _stack(batches: Iterable[Any]) -> Batch:
    parts = list(batches)
    return Batch(
        tokens=np.stack([b.tokens for b in parts]),
        targets=np.stack([b.targets for b in parts]),
        weights=np.stack([b.weights for b in parts]),
    )
