"""What decoding needs of a model, in a form that a compiled program can belong to."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.core import trees
from jaxlm.models.api import LanguageModel

CHUNK = 128  # tokens that a ring can read at once, or take back


class Decoder(NamedTuple):
    """Functions of a LanguageModel, see there; hashable, so a static argument of a program."""

    init_cache: Callable[..., Any]
    extend: Callable[..., Any]
    take_back: Callable[..., Any] | None
    vocab_size: int
    window: int | None

    def cache_entries(self, length: int) -> int:
        """Entries a row for texts of up to `length` tokens: a ring of fewer where that will do."""
        return length if self.window is None else min(length, self.window + CHUNK)


def decoder_of(model: LanguageModel) -> Decoder:
    """What `Decoder` says, by a model's own functions; its params are the model's."""
    functions = model.init_cache, model.extend, model.take_back
    return Decoder(*functions, vocab_size(model), model.window)


def vocab_size(model: LanguageModel) -> int:
    """V, the last axis of its logits [B, S, V]: of its weights with a `vocab` axis."""
    specs = trees.flatten(model.specs).values()
    return next(s.shape[s.axes.index("vocab")] for s in specs if "vocab" in s.axes)
