"""RNN, GRU and LSTM language models: layers of one cell, its state a cache of fixed size.

The input's part of all gates and steps is one product before the scan over time.
Dropout is on what enters a layer and on what the last one gives, never between two steps
(Zaremba et al. 2014, "Recurrent Neural Network Regularization").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import check_choices
from jaxlm.core.params import ParamSpec, orthogonal, truncated_normal, xavier, zeros
from jaxlm.core.sharding import unconstrained
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.nn import recurrent as cells
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.linear import add_bias, float32_product
from jaxlm.nn.linear import linear as plain_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(ModelConfig):
    """Architecture.

    reset: of the GRU: after its product with the state, as in Keras and cuDNN, or before.
    carry_state: a row of a batch goes on from the state in which the one before ended, with
      gradients cut between them (truncated backpropagation); needs data.order=contiguous.
      Evaluation and text begin from a state of zeros.
    """

    kind: Literal["rnn", "gru", "lstm"] = "gru"
    num_layers: int = 1
    d_model: int = 128
    reset: Literal["after", "before"] = "after"
    carry_state: bool = False
    init_scale: float = 1.0  # factor on the initial kernels and the head
    dropout: float = 0.0

    NUMBERS: ClassVar[tuple[str, ...]] = ("dropout", "init_scale")

    def __post_init__(self):
        check_choices(self)
        self.check_counts("vocab_size", "context_length", "num_layers", "d_model")
        self.check_dropout()
        if self.kind != "gru" and self.reset != "after":
            raise ValueError(f"reset={self.reset}: only kind=gru has a reset gate")

    @property
    def summary(self) -> str:
        name = "gru, reset before the product" if self.reset == "before" else self.kind
        layers = "layer" if self.num_layers == 1 else "layers"
        carried = ", state carried from batch to batch" if self.carry_state else ""
        return (
            f"{name}, {self.num_layers} {layers} of width {self.d_model}, context "
            f"{self.context_length}{carried}"
        )

    @property
    def sure_reach(self) -> int:
        return 32  # a derivative halves or so with every step back

    @property
    def carries(self) -> str | None:
        return "recurrent state" if self.carry_state else None

    @property
    def has_recurrent_bias(self) -> bool:
        return self.kind == "gru" and self.reset == "after"


@struct.dataclass
class RecurrentCache:
    """state: tuple of f32[B, N, D], see `jaxlm.nn.recurrent`. length: i32[B], tokens read."""

    state: tuple[Array, ...]
    length: Array


def param_specs(cfg: RecurrentConfig) -> dict[str, Any]:
    """Every weight of the model, by path."""
    N, D, V, G = cfg.num_layers, cfg.d_model, cfg.known_vocab_size, cells.GATES[cfg.kind]
    matrix = functools.partial(
        ParamSpec, shape=(N, D, G, D), axes=("layers", "embed", "gates", "hidden")
    )
    bias = ParamSpec(shape=(N, G, D), axes=("layers", "gates", "hidden"), init=zeros, num_in=0)
    blocks = {
        "kernel": matrix(init=_gate_by_gate(xavier(cfg.init_scale))),
        "recurrent": matrix(init=_gate_by_gate(orthogonal)),
        "bias": dataclasses.replace(bias, init=_open_forget_gate if cfg.kind == "lstm" else zeros),
    }
    if cfg.has_recurrent_bias:
        blocks["recurrent_bias"] = bias
    return {
        "embed": ParamSpec(shape=(V, D), axes=("vocab", "embed"), init=truncated_normal(1.0)),
        "blocks": blocks,
        "unembed": ParamSpec(shape=(D, V), axes=("embed", "vocab"), init=xavier(cfg.init_scale)),
        "unembed_bias": ParamSpec(shape=(V,), axes=("vocab",), init=zeros, num_in=0),
    }


def _gate_by_gate(init):
    """[D, G, D], each gate drawn as a matrix of its own: the fan of all as one would be larger."""

    def draw(key, spec):
        rows, num_gates, columns = spec.shape
        one = dataclasses.replace(spec, shape=(rows, columns), axes=(spec.axes[0], spec.axes[2]))
        keys = [jax.random.fold_in(key, g) for g in range(num_gates)]
        return jnp.stack([init(k, one) for k in keys], axis=1)

    return draw


def _open_forget_gate(key, spec):
    """A bias of 1 on f, so that at first a cell forgets little.

    Source: Gers et al. 2000; Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network
      Architectures", section 2.2.
    """
    return zeros(key, spec).at[1].set(1)


def _cell(cfg):
    if cfg.kind == "gru" and cfg.reset == "before":
        return cells.gru_reset_before
    return {"rnn": cells.rnn, "gru": cells.gru, "lstm": cells.lstm}[cfg.kind]


def run_layers(
    params: Params,
    tokens: Array,
    state: tuple[Array, ...],
    cfg: RecurrentConfig,
    *,
    starts: Array | None = None,
    taken: Array | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
    linear: Callable[..., Array] = plain_linear,
    constrain: Callable[..., Array] = unconstrained,
) -> tuple[Array, tuple[Array, ...]]:
    """All layers over i32[B, S] tokens, from a state and to a state of f32[N, B, D].

    Args:
      starts, taken: as `jaxlm.nn.recurrent.scan_cell`.
      key, dropout, linear, constrain: as of `jaxlm.models.transformer.hidden`.
    Returns:
      f32[B, S, D] and the state.
    """
    rate = cfg.dropout if dropout is None else dropout
    keys = None if key is None else jax.random.split(key, cfg.num_layers + 1)

    def layer(x, each):
        w, state, key = each
        w = {name: jnp.asarray(weight) for name, weight in w.items()}  # merges adapters, once
        # Read anew at every step: it has to be whole before the scan begins.
        w["recurrent"] = constrain(w["recurrent"], (None, None, None))
        gates = add_bias(linear(drop(x, rate, key), w["kernel"]), w["bias"])
        x, state = cells.scan_cell(_cell(cfg), gates, state, w, starts=starts, taken=taken)
        return constrain(x, ("batch", "seq", "embed_act")), state

    x = constrain(params["embed"], ("vocab", "embed_act"))[tokens]
    x = constrain(x, ("batch", "seq", "embed_act"))
    per_layer = (params["blocks"], state, None if keys is None else keys[:-1])
    x, state = jax.lax.scan(layer, x, per_layer)
    return drop(x, rate, None if keys is None else keys[-1]), state


def zero_state(cfg: RecurrentConfig, batch_size: int) -> tuple[Array, ...]:
    """That before the first token: each f32[N, B, D]."""
    zero = jnp.zeros((cfg.num_layers, batch_size, cfg.d_model))
    return (zero,) * cells.NUM_STATES[cfg.kind]


def _starts(segment_ids):
    """bool[B, S]: where a segment begins behind another one."""
    if segment_ids is None:
        return None
    return jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0


def hidden(params, tokens, cfg, *, segment_ids=None, **options) -> Array:
    """The last layer's states f32[B, S, D], from a state of zeros; options: of `run_layers`.

    segment_ids: i32[B, S], packed rows: the state becomes zero where another segment begins.
    """
    state = zero_state(cfg, len(tokens))
    return run_layers(params, tokens, state, cfg, starts=_starts(segment_ids), **options)[0]


def train_hidden(
    params, tokens, carry, cfg, *, segment_ids=None, goes_on=None, **options
) -> tuple[Array, Any]:
    """As `hidden`, from the state in `carry`, which the state after the row replaces."""
    x, state = run_layers(
        params, tokens, carry["state"], cfg, starts=_starts(segment_ids), **options
    )
    if goes_on is not None:
        state = jax.tree.map(lambda s: jnp.where(goes_on[:, None], s, 0), state)
    return x, {"state": state}


def unembed(params: Params, x: Array) -> Array:
    """Next-token logits f32[B, S, V]."""
    return float32_product(x, params["unembed"]) + params["unembed_bias"]


def init_cache(cfg: RecurrentConfig, batch_size: int, length: int) -> RecurrentCache:
    """The state of zeros; it takes any number of tokens."""
    del length
    return RecurrentCache(_swapped(zero_state(cfg, batch_size)), jnp.zeros(batch_size, jnp.int32))


def extend(params, tokens, cache, cfg, *, lengths=None) -> tuple[Array, RecurrentCache]:
    """Reads `tokens` i32[B, S] on from the cache; see `jaxlm.models.api.LanguageModel`."""
    S = tokens.shape[1]
    taken = None if lengths is None else jnp.arange(S) < lengths[:, None]
    x, state = run_layers(params, tokens, _swapped(cache.state), cfg, taken=taken)
    return unembed(params, x), RecurrentCache(
        _swapped(state), cache.length + (S if lengths is None else lengths)
    )


def _swapped(state):
    """[N, B, D] as [B, N, D], and back: a cache has its rows first, a scan its layers."""
    return tuple(jnp.swapaxes(x, 0, 1) for x in state)


def build(cfg: RecurrentConfig, **options: Any) -> LanguageModel:
    """The config's model as functions of parameters and tokens; options: linear and constrain."""
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=functools.partial(hidden, cfg=cfg, **options),
        unembed=unembed,
        head=("unembed", "unembed_bias"),
        init_cache=functools.partial(init_cache, cfg),
        extend=functools.partial(extend, cfg=cfg),
        init_carry=lambda rows: {"state": zero_state(cfg, rows)} if cfg.carry_state else {},
        train_hidden=functools.partial(train_hidden, cfg=cfg, **options)
        if cfg.carry_state
        else None,
    )
