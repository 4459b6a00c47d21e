"""What every model offers: a config and a handful of pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from jaxlm.core.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the jobs read of the config of any model. Each kind has a class of its own.

    d_model, of every kind: D, the width that the head reads.
    """

    kind: str = ""  # which model; a class gives it a Literal type
    vocab_size: int | None = None  # None: taken from the tokenizer
    context_length: int = 256  # S of a training row

    # Numbers that a program can be given as arrays, so that runs that differ in them share it.
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    # What a kind that says nothing of these does.
    causal: ClassVar[bool] = True
    dropout: ClassVar[float] = 0.0
    dtype: ClassVar[str] = "float32"
    remat: ClassVar[str] = "none"

    @property
    def summary(self) -> str:
        """ "4 layers, width 128, ..." """
        raise NotImplementedError

    @property
    def known_vocab_size(self) -> int:
        """V; ConfigError where neither the config nor a tokenizer has said it."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size must be given before the weights can be declared")
        return self.vocab_size

    @property
    def reach(self) -> int | None:
        """How many places before its own a prediction sees; None: all."""
        return None

    @property
    def sure_reach(self) -> int | None:
        """How many of them surely move the logits by a number that float32 can hold; None: all."""
        return self.reach

    @property
    def max_positions(self) -> int | None:
        """How long a text the model can hold; None: any."""
        return None

    @property
    def attention(self) -> tuple[int, int, int]:
        """(layers, heads, head dimension) of its attention; zeros without."""
        return 0, 0, 0

    @property
    def carries(self) -> str | None:
        """What training hands on from batch to batch, in words; None: nothing."""
        return None

    def to_decode(self) -> "ModelConfig":
        """The config to write text with."""
        return self

    def check_counts(self, *names: str) -> None:
        """Raises ValueError unless each of these fields is None or at least 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def check_dropout(self) -> None:
        """Raises ValueError unless the rate is one."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")


class LanguageModel(NamedTuple):
    """A sequence model as functions of its parameters, its config already filled in.

    specs: nested dict of ParamSpec.
    hidden: (params, tokens i32[B, S], *, segment_ids=None, key=None, dropout=None)
      -> [B, S, D]; key None means no dropout.
    unembed: (params, hidden [B, S, D]) -> logits f32[B, S, V].
    head: paths of the weights that `unembed` reads; each has a "vocab" axis, and a logit depends
      on no entries but those of its id. (): there are none, what `hidden` gives are the logits.
    init_cache: (batch_size, length) -> cache for up to `length` tokens a row. Every array in it has
      an entry a row first, and `length` i32[B] counts the tokens read.
    extend: (params, tokens i32[B, S], cache, lengths=None) -> (logits f32[B, S, V], cache), the
      first lengths[b] tokens of each row (None: all S) appended to what the cache holds.
    decoding_params: (params) -> the form of them that `extend` reads fastest.
    take_back: (cache, length i32[B]) -> cache of only the first length[b] tokens of each row. None
      where what was read cannot be taken back.
    window: entries that `extend` reads back over, the token's own included; None: all. A cache of
      fewer entries T than a text has tokens is then a ring that writes over the oldest: at most
      T - window tokens may be read at once, and padding and tokens taken back be no more.
    init_carry: (batch_size) -> what training hands on from batch to batch; {} for nothing.
    train_hidden: (params, tokens, carry, *, goes_on=None, **options of hidden) -> (hidden, carry)
      for a model with a carry. goes_on: bool[B], whether the next batch goes on in the document
      in which the row ends; None: it does.
    settle: (params, carry) -> the params that all other functions read once training is over.
    """

    specs: dict[str, Any]
    hidden: Callable[..., Any]
    unembed: Callable[..., Any]
    head: tuple[str, ...]
    init_cache: Callable[..., Any]
    extend: Callable[..., Any]
    decoding_params: Callable[..., Any] = lambda params: params
    take_back: Callable[..., Any] | None = None
    window: int | None = None
    init_carry: Callable[[int], Any] = lambda batch_size: {}
    train_hidden: Callable[..., Any] | None = None
    settle: Callable[..., Any] = lambda params, carry: params

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
