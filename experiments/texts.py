"""Real text for studies: ids in memory, and the batches of many lanes."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments import library
from jaxlm.data import batches
from jaxlm.data.batches import Batch, Split, evaluation_batches, split_from_array
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import open_corpus
from jaxlm.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

HELD_OUT = 0.1  # of the plays


class Text(NamedTuple):
    """A text as ids: its tokenizer, a part to train on and a part to validate on."""

    tokenizer: Tokenizer
    train: Split
    validation: Split
    fingerprint: str


@functools.cache
def plays(kind: str = "characters") -> Text:
    """The bundled plays, of which the last tenth validates; kind: characters or bytes."""
    text, fingerprint = _text_of_plays()
    return as_text(text, kind, HELD_OUT, fingerprint)


def plays_as(tokenizer: Tokenizer) -> Text:
    """The same in the tokens of a model that is there already."""
    text, fingerprint = _text_of_plays()
    return _cut(text, tokenizer, HELD_OUT, fingerprint)


def _text_of_plays() -> tuple[str, str]:
    corpus = open_corpus(DataConfig())
    text = "\n".join("".join(pieces) for pieces in corpus.documents())
    return text, corpus.fingerprint


@functools.cache
def standard_library(
    modules: tuple[str, ...],
    num_validation_modules: int,
    corpus_sha256: str,
    tokenizer: Tokenizer | None = None,
) -> Text:
    """Files of Python's library; the last `num_validation_modules` validate.

    tokenizer: None: of bytes.

    Raises:
      ConfigError: a file that is not there, or another text than that of the hash.
    """
    texts = library.read_modules(modules)
    library.check_fingerprint(texts, corpus_sha256)
    tokenizer, cut = tokenizer or plays("bytes").tokenizer, -num_validation_modules
    parts = (tokenizer.encode_ordinary("".join(part)) for part in (texts[:cut], texts[cut:]))
    return Text(tokenizer, *map(split_from_array, parts), corpus_sha256)


def as_text(text: str, kind: str, val_fraction: float, fingerprint: str) -> Text:
    """`text` cut in two and encoded."""
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind), [text])
    return _cut(text, tokenizer, val_fraction, fingerprint)


def _cut(text: str, tokenizer: Tokenizer, val_fraction: float, fingerprint: str) -> Text:
    ids = tokenizer.encode(text)
    cut = int(len(ids) * (1 - val_fraction))
    return Text(tokenizer, split_from_array(ids[:cut]), split_from_array(ids[cut:]), fingerprint)


def lane_batches(
    split: Split, seeds: Sequence[int], *, batch_size: int, context_length: int
) -> Callable[[int, int], Batch]:
    """(first step, last step + 1) -> Batch [P, steps, B, S], as `train_population` reads it.

    Lane p sees the text in the order of seeds[p]; lanes of one seed see the same.
    """

    sizes = {"batch_size": batch_size, "context_length": context_length}
    return lambda first, last: batches.lane_batches(split, seeds, range(first, last), **sizes)


def validation_batches(
    split: Split, *, num_batches: int, batch_size: int, context_length: int
) -> Batch:
    """The first batches of a validation text, [num_batches, B, S]."""
    whole = evaluation_batches(split, batch_size=batch_size, context_length=context_length)
    return batches.stack_batches(list(itertools.islice(whole, num_batches)))
