"""What decoding needs of a model, in a form that a compiled program can belong to."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlm.core import trees
from jaxlm.models.api import LanguageModel


class Decoder(NamedTuple):
    """Functions of a LanguageModel, see there; hashable, so a static argument of a program."""

    init_cache: Callable[..., Any]
    extend: Callable[..., Any]
    take_back: Callable[..., Any] | None
    vocab_size: int


def decoder_of(model: LanguageModel) -> Decoder:
    return Decoder(model.init_cache, model.extend, model.take_back, vocab_size(model))


def vocab_size(model: LanguageModel) -> int:
    specs = trees.flatten(model.specs).values()
    return next(s.shape[s.axes.index("vocab")] for s in specs if "vocab" in s.axes)
