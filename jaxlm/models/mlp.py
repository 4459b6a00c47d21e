"""The neural model of a fixed number of words: a window of embeddings, one hidden layer, a head.

Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", section 2, with the direct
connections (its equation 1) as a choice, and batch normalisation of the hidden layer as another.

A batch-normalised model has two forms of parameters. The ones that are trained have a gain and a
shift, and `train_hidden` normalises with the batch's own statistics, which it also averages in the
carry. `settle` folds gain, shift and averages into the linear layer before: what is left is an
ordinary MLP, which all other functions take.
Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2; the variance averaged is
that of the batches, as Keras has it, without the paper's factor m / (m - 1).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import struct

from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import check_choices
from jaxlm.core.params import ParamSpec, ones, truncated_normal, xavier, zeros
from jaxlm.core.sharding import unconstrained
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.linear import float32_product
from jaxlm.nn.linear import linear as plain_linear
from jaxlm.nn.windows import append, windows

AVERAGED = 100  # batches: the plain average of the first ones, later ones weigh 1/100
EPS = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig(ModelConfig):
    """Architecture. The defaults are Bengio's, at a size for characters.

    window: tokens that a prediction reads, its own included. What lies before the text or in
      another document is a learned vector.
    direct: connections from the embeddings to the logits, beside the hidden layer.
    output_init: factor on the initial head: near 0 the first loss is log(vocab_size).
    """

    kind: Literal["mlp"] = "mlp"
    window: int = 8
    d_embed: int = 16
    d_model: int = 256  # of the hidden layer
    direct: bool = False
    batch_norm: bool = False
    init_scale: float = 1.0  # factor on the initial hidden layer
    output_init: float = 0.01
    dropout: float = 0.0  # of the hidden layer

    NUMBERS: ClassVar[tuple[str, ...]] = ("dropout", "init_scale", "output_init")

    def __post_init__(self):
        check_choices(self)
        self.check_counts("vocab_size", "context_length", "window", "d_embed", "d_model")
        self.check_dropout()

    @property
    def summary(self) -> str:
        extras = ", direct connections" if self.direct else ""
        extras += ", batch norm" if self.batch_norm else ""
        return f"mlp, window {self.window}, embeddings {self.d_embed}, width {self.d_model}{extras}"

    @property
    def reach(self) -> int:
        return self.window - 1

    @property
    def carries(self) -> str | None:
        return "batch-norm statistics" if self.batch_norm else None


@struct.dataclass
class WindowCache:
    """ids: i32[B, window - 1], the last tokens, -1 where there are none. length: i32[B]."""

    ids: Array
    length: Array


def param_specs(cfg: MlpConfig) -> dict[str, Any]:
    """Every weight of the model as it is trained, by path."""
    V, W, E, D = cfg.known_vocab_size, cfg.window, cfg.d_embed, cfg.d_model
    vector = functools.partial(ParamSpec, num_in=0)
    taps = functools.partial(ParamSpec, num_in=2)
    specs = {
        "embed": ParamSpec(shape=(V, E), axes=("vocab", "features"), init=truncated_normal(1.0)),
        "start": vector(shape=(E,), axes=("features",), init=truncated_normal(1.0)),
        "kernel": taps(
            shape=(W, E, D), axes=("window", "features", "embed"), init=xavier(cfg.init_scale)
        ),
        "unembed": ParamSpec(shape=(D, V), axes=("embed", "vocab"), init=xavier(cfg.output_init)),
        "unembed_bias": vector(shape=(V,), axes=("vocab",), init=zeros),
    }
    hidden_vector = functools.partial(vector, shape=(D,), axes=("embed",))
    if cfg.batch_norm:
        specs |= {"gain": hidden_vector(init=ones), "shift": hidden_vector(init=zeros)}
    else:
        specs["bias"] = hidden_vector(init=zeros)
    if cfg.direct:
        specs["direct"] = taps(
            shape=(W, E, V), axes=("window", "features", "vocab"), init=xavier(cfg.output_init)
        )
    return specs


def embed_windows(
    params: Params,
    tokens: Array,
    cfg: MlpConfig,
    *,
    segment_ids: Array | None = None,
    before: Array | None = None,
) -> Array:
    """f32[B, S, window, E]: what each position reads, oldest first; before: ids, -1 for none."""
    ids = windows(tokens, cfg.window, fill=-1, segment_ids=segment_ids, before=before)
    return jnp.where(ids[..., None] < 0, params["start"], params["embed"][ids])


def _finish(params, x, y, cfg, key, dropout):
    """The hidden layer from its sums y, and behind it what the direct connections read."""
    h = drop(jnp.tanh(y), cfg.dropout if dropout is None else dropout, key)
    return jnp.concatenate([h, x.reshape(*x.shape[:2], -1)], axis=-1) if cfg.direct else h


def hidden(
    params: Params,
    tokens: Array,
    cfg: MlpConfig,
    *,
    segment_ids: Array | None = None,
    before: Array | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
    linear: Callable[..., Array] = plain_linear,
    constrain: Callable[..., Array] = unconstrained,
) -> Array:
    """What the head reads, f32[B, S, D], with direct connections D + window * E wide.

    Args:
      params: settled. segment_ids: i32[B, S], packed rows: a window ends at its segment's border.
      before: i32[B, window - 1], ids before the row, -1 for none.
      key, dropout, linear, constrain: as of `jaxlm.models.transformer.hidden`.
    """
    if "gain" in params:
        raise ValueError("batch norm: these are params as they are trained; settle them first")
    table = constrain(params["embed"], ("vocab", "embed_act"))
    x = embed_windows(
        {**params, "embed": table}, tokens, cfg, segment_ids=segment_ids, before=before
    )
    y = linear(x, params["kernel"], 2) + params["bias"]
    return _finish(params, x, constrain(y, ("batch", "seq", "embed_act")), cfg, key, dropout)


def train_hidden(
    params: Params,
    tokens: Array,
    carry: dict[str, Array],
    cfg: MlpConfig,
    *,
    segment_ids: Array | None = None,
    goes_on: Array | None = None,
    key: Array | None = None,
    dropout: Array | float | None = None,
    linear: Callable[..., Array] = plain_linear,
    constrain: Callable[..., Array] = unconstrained,
) -> tuple[Array, dict[str, Array]]:
    """`hidden` with the hidden layer normalised over all B * S positions, and the new averages.

    carry: mean and var f32[D], and how many batches they are of; see `init_carry`.
    """
    del goes_on  # no text is carried
    table = constrain(params["embed"], ("vocab", "embed_act"))
    x = embed_windows({**params, "embed": table}, tokens, cfg, segment_ids=segment_ids)
    y = constrain(linear(x, params["kernel"], 2), ("batch", "seq", "embed_act"))
    mean, var = jnp.mean(y, (0, 1)), jnp.var(y, (0, 1))
    y = params["gain"] * (y - mean) / jnp.sqrt(var + EPS) + params["shift"]
    count = carry["count"] + 1
    rate = 1 / jnp.minimum(count, AVERAGED)
    new = {"mean": mean, "var": var}
    new = {name: carry[name] + rate * (value - carry[name]) for name, value in new.items()}
    return _finish(params, x, y, cfg, key, dropout), {**new, "count": count}


def init_carry(cfg: MlpConfig, batch_size: int) -> dict[str, Array]:
    """The averages before the first batch, of which there are none without batch norm."""
    del batch_size
    if not cfg.batch_norm:
        return {}
    zero = jnp.zeros(cfg.d_model)
    return {"mean": zero, "var": zero + 1, "count": jnp.zeros(())}


def settle(params: Params, carry: dict[str, Array]) -> Params:
    """Batch norm folded into the linear layer before it."""
    if "gain" not in params:
        return params
    factor = params["gain"] / jnp.sqrt(carry["var"] + EPS)
    rest = {name: w for name, w in params.items() if name not in ("gain", "shift")}
    return rest | {
        "kernel": params["kernel"] * factor,
        "bias": params["shift"] - carry["mean"] * factor,
    }


def unembed(params: Params, x: Array) -> Array:
    """Next-token logits f32[B, S, V]."""
    w = params["unembed"]
    if "direct" in params:
        direct = params["direct"]
        w = jnp.concatenate([w, direct.reshape(-1, direct.shape[-1])])
    return float32_product(x, w) + params["unembed_bias"]


def init_cache(cfg: MlpConfig, batch_size: int, length: int) -> WindowCache:
    """No tokens yet; it takes any number of them."""
    del length
    ids = jnp.full((batch_size, cfg.window - 1), -1, jnp.int32)
    return WindowCache(ids, jnp.zeros(batch_size, jnp.int32))


def extend(params, tokens, cache, cfg, *, lengths=None) -> tuple[Array, WindowCache]:
    """Reads `tokens` i32[B, S] on from the cache; see `jaxlm.models.api.LanguageModel`."""
    logits = unembed(params, hidden(params, tokens, cfg, before=cache.ids))
    taken = tokens.shape[1] if lengths is None else lengths
    return logits, WindowCache(append(cache.ids, tokens, lengths), cache.length + taken)


def build(cfg: MlpConfig, **options: Any) -> LanguageModel:
    """The config's model as functions of parameters and tokens; options: linear and constrain."""
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=functools.partial(hidden, cfg=cfg, **options),
        unembed=unembed,
        head=("unembed", "unembed_bias", *(("direct",) if cfg.direct else ())),
        init_cache=functools.partial(init_cache, cfg),
        extend=functools.partial(extend, cfg=cfg),
        init_carry=functools.partial(init_carry, cfg),
        train_hidden=functools.partial(train_hidden, cfg=cfg, **options)
        if cfg.batch_norm
        else None,
        settle=settle,
    )
