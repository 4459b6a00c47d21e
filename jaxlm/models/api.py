"""What every model offers: a handful of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple


class LanguageModel(NamedTuple):
    """A sequence model as functions of its parameters, its config already filled in.

    specs: nested dict of ParamSpec.
    hidden: (params, tokens i32[B, S], *, segment_ids=None, key=None, dropout=None)
      -> [B, S, D]; key None means no dropout.
    unembed: (params, hidden [B, S, D]) -> logits f32[B, S, V].
    head: paths of the weights that `unembed` reads; each has a "vocab" axis, and a logit depends
      on no entries but those of its id.
    init_cache: (batch_size, length) -> cache for up to `length` tokens a row. Every array in it has
      an entry a row first, and `length` i32[B] counts the tokens read.
    extend: (params, tokens i32[B, S], cache, lengths=None) -> (logits f32[B, S, V], cache), the
      first lengths[b] tokens of each row (None: all S) appended to what the cache holds.
    decoding_params: (params) -> the form of them that `extend` reads fastest.
    take_back: (cache, length i32[B]) -> cache of only the first length[b] tokens of each row. None
      where what was read cannot be taken back.
    """

    specs: dict[str, Any]
    hidden: Callable[..., Any]
    unembed: Callable[..., Any]
    head: tuple[str, ...]
    init_cache: Callable[..., Any]
    extend: Callable[..., Any]
    decoding_params: Callable[..., Any] = lambda params: params
    take_back: Callable[..., Any] | None = None

    def forward(self, params, tokens, **options):
        """Logits f32[B, S, V]: `unembed` of `hidden`."""
        return self.unembed(params, self.hidden(params, tokens, **options))

    def decode_step(self, params, tokens, cache):
        """One token a row, i32[B] -> (logits f32[B, V], cache)."""
        logits, cache = self.extend(params, tokens[:, None], cache)
        return logits[:, 0], cache


class Classifier(NamedTuple):
    """A model that gives each input one of C classes, its config already filled in.

    specs: nested dict of ParamSpec.
    forward: (params, inputs, *, key=None, dropout=None) -> logits f32[B, C]; key None means no
      dropout. inputs: what the model says, of leading B.
    """

    specs: dict[str, Any]
    forward: Callable[..., Any]
