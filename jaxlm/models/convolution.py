"""Temporal convolution: causal convolutions whose reach doubles with every layer.

gate=relu: the residual block of Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional
and Recurrent Networks for Sequence Modeling", section 3: two convolutions, ReLU, dropout; without
its weight normalisation. gate=wavenet: one gated convolution tanh(.) * sigmoid(.) and a linear map
back into the stream, van den Oord et al. 2016, "WaveNet", section 2.3, without its skip outputs.
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
from jaxlm.core.params import ParamSpec, truncated_normal, xavier, zeros
from jaxlm.core.sharding import unconstrained
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.linear import float32_product
from jaxlm.nn.linear import linear as plain_linear
from jaxlm.nn.windows import append, windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionConfig(ModelConfig):
    """Architecture. Layer n, from 0, reads kernel_size positions that lie 2^n apart."""

    kind: Literal["tcn"] = "tcn"
    num_layers: int = 4
    d_model: int = 128
    kernel_size: int = 3
    gate: Literal["relu", "wavenet"] = "relu"
    init_scale: float = 1.0  # factor on the initial matrices
    dropout: float = 0.0

    NUMBERS: ClassVar[tuple[str, ...]] = ("dropout", "init_scale")

    def __post_init__(self):
        check_choices(self)
        self.check_counts("vocab_size", "context_length", "num_layers", "d_model", "kernel_size")
        self.check_dropout()

    @property
    def summary(self) -> str:
        return (
            f"tcn, {self.num_layers} layers of width {self.d_model}, kernel {self.kernel_size}, "
            f"reads {self.reach + 1} tokens, {self.gate}"
        )

    @property
    def num_convolutions(self) -> int:
        """In a layer."""
        return 2 if self.gate == "relu" else 1

    @property
    def reach(self) -> int:
        return self.num_convolutions * (self.kernel_size - 1) * (2**self.num_layers - 1)


@struct.dataclass
class ConvolutionCache:
    """What later positions read. inputs: for each convolution f32[B, (kernel_size - 1) * 2^n, D],
    the newest last, zeros before the text. length: i32[B], tokens read.
    """

    inputs: tuple[Array, ...]
    length: Array


def param_specs(cfg: ConvolutionConfig) -> dict[str, Any]:
    """Every weight of the model, by path."""
    V, N, K, D = cfg.known_vocab_size, cfg.num_layers, cfg.kernel_size, cfg.d_model
    init = xavier(cfg.init_scale)

    def taps(*outputs):
        axes = ("layers", "taps", "embed", "gates", "hidden")[: 3 + len(outputs)]
        return ParamSpec(shape=(N, K, D, *outputs), axes=axes, init=init, num_in=2)

    def bias(*shape):
        axes = ("layers", "gates", "hidden")[: 1 + len(shape)]
        return ParamSpec(shape=(N, *shape), axes=axes, init=zeros, num_in=0)

    if cfg.gate == "relu":
        blocks = {"w_first": taps(D), "w_second": taps(D), "b_first": bias(D), "b_second": bias(D)}
    else:
        back = ParamSpec(shape=(N, D, D), axes=("layers", "embed", "hidden"), init=init)
        blocks = {"w_gates": taps(2, D), "b_gates": bias(2, D), "w_out": back, "b_out": bias(D)}
    return {
        "embed": ParamSpec(shape=(V, D), axes=("vocab", "embed"), init=truncated_normal(1.0)),
        "blocks": blocks,
        "unembed": ParamSpec(shape=(D, V), axes=("embed", "vocab"), init=init),
        "unembed_bias": ParamSpec(shape=(V,), axes=("vocab",), init=zeros, num_in=0),
    }


def run_layers(
    params: Params,
    tokens: Array,
    cfg: ConvolutionConfig,
    *,
    segment_ids: Array | None = None,
    cache: ConvolutionCache | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
    linear: Callable[..., Array] = plain_linear,
    constrain: Callable[..., Array] = unconstrained,
) -> tuple[Array, list[Array]]:
    """All layers over i32[B, S] tokens.

    Args:
      segment_ids: i32[B, S], packed rows: other segments are read as zeros. cache: what the row
        goes on from. key, dropout, linear, constrain: as of `jaxlm.models.transformer.hidden`.
    Returns:
      f32[B, S, D], and what each convolution read.
    """
    rate, inputs = cfg.dropout if dropout is None else dropout, []

    def convolve(x, w, bias, dilation):
        before = None if cache is None else cache.inputs[len(inputs)]
        seen = windows(x, cfg.kernel_size, dilation, segment_ids=segment_ids, before=before)
        inputs.append(x)
        return linear(seen, jnp.asarray(w), 2) + bias

    def relu_block(x, w, dilation, keys):
        y = x
        for name, key in zip(("first", "second"), keys, strict=True):
            y = jax.nn.relu(convolve(y, w[f"w_{name}"], w[f"b_{name}"], dilation))
            y = drop(y, rate, key)
        return jax.nn.relu(x + y)

    def wavenet_block(x, w, dilation, keys):
        gates = convolve(x, w["w_gates"], w["b_gates"], dilation)
        y = jnp.tanh(gates[:, :, 0]) * jax.nn.sigmoid(gates[:, :, 1])
        y = linear(y, jnp.asarray(w["w_out"])) + w["b_out"]
        return x + drop(y, rate, keys[0])

    block = relu_block if cfg.gate == "relu" else wavenet_block
    x = constrain(params["embed"], ("vocab", "embed_act"))[tokens]
    for n in range(cfg.num_layers):  # each with a dilation of its own: nothing to scan over
        w = jax.tree.map(lambda stacked, n=n: stacked[n], params["blocks"])
        keys = [None, None] if key is None else jax.random.split(jax.random.fold_in(key, n))
        x = constrain(block(x, w, 2**n, keys), ("batch", "seq", "embed_act"))
    return x, inputs


def hidden(params: Params, tokens: Array, cfg: ConvolutionConfig, **options) -> Array:
    """What the head reads, f32[B, S, D]; options: of `run_layers`."""
    return run_layers(params, tokens, cfg, **options)[0]


def unembed(params: Params, x: Array) -> Array:
    """Next-token logits f32[B, S, V]."""
    return float32_product(x, params["unembed"]) + params["unembed_bias"]


def init_cache(cfg: ConvolutionConfig, batch_size: int, length: int) -> ConvolutionCache:
    """No tokens yet; it takes any number of them."""
    del length
    inputs = [
        jnp.zeros((batch_size, (cfg.kernel_size - 1) * 2**n, cfg.d_model))
        for n in range(cfg.num_layers)
        for _ in range(cfg.num_convolutions)
    ]
    return ConvolutionCache(tuple(inputs), jnp.zeros(batch_size, jnp.int32))


def extend(params, tokens, cache, cfg, *, lengths=None) -> tuple[Array, ConvolutionCache]:
    """Reads `tokens` i32[B, S] on from the cache; see `jaxlm.models.api.LanguageModel`."""
    x, inputs = run_layers(params, tokens, cfg, cache=cache)
    held = zip(cache.inputs, inputs, strict=True)
    held = tuple(append(before, new, lengths) for before, new in held)
    taken = tokens.shape[1] if lengths is None else lengths
    return unembed(params, x), ConvolutionCache(held, cache.length + taken)


def build(cfg: ConvolutionConfig, **options: Any) -> LanguageModel:
    """The config's model as functions of parameters and tokens; options: linear and constrain."""
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=functools.partial(hidden, cfg=cfg, **options),
        unembed=unembed,
        head=("unembed", "unembed_bias"),
        init_cache=functools.partial(init_cache, cfg),
        extend=functools.partial(extend, cfg=cfg),
    )
