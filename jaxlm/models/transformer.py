"""The transformer, decoder and encoder: one block, scanned over stacked layers.

Shapes use the letters of `jaxlm.core.arrays`. Read `param_specs`, `block` and `run_layers`: that is
the model; `hidden` gives it tokens. `extend` runs the same block against a cache, `trace` looks
inside it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import check_choices
from jaxlm.core.params import ParamSpec, ones, truncated_normal, xavier, zeros
from jaxlm.core.sharding import unconstrained
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.nn.attention import attend as plain_attend
from jaxlm.nn.attention import attention_weights
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.feedforward import ACTIVATIONS, GATES, feedforward, gated_feedforward
from jaxlm.nn.linear import add_bias, float32_product
from jaxlm.nn.linear import linear as plain_linear
from jaxlm.nn.norms import layer_norm, rms_norm
from jaxlm.nn.positions import segment_positions, sinusoidal
from jaxlm.nn.rope import apply_rope, rope_angles

Activation = Literal["swiglu", "geglu", "reglu", "gelu", "relu", "relu_squared", "silu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """Architecture. The defaults are a small Llama-style decoder.

    With learned positions, context_length is the size of their table.
    """

    kind: Literal["transformer"] = "transformer"
    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: d_model / num_heads
    d_ff: int | None = None  # None: 4 * d_model; 8/3 * d_model in whole eights with a gate
    activation: Activation = "swiglu"  # swiglu, geglu and reglu have a gate
    norm: Literal["rms", "layer"] = "rms"
    norm_placement: Literal["pre", "post", "none"] = "pre"
    norm_eps: float = 1e-5
    residual: float = 1.0  # factor of the skip connection; 0 removes it
    positions: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_layout: Literal["interleaved", "half"] = "interleaved"
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] | None = None  # Llama 3's four numbers, see nn.rope
    causal: bool = True  # False: an encoder
    window: int | None = None  # sliding window, in positions, the query's own included
    qk_norm: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tied_head: bool = False
    bias: bool = False  # in attention, in a feed-forward without gate, and on layer norm
    qkv_bias: bool = False  # in attention on queries, keys and values alone, without bias
    head_bias: bool = False
    init_scale: float = 1.0  # factor on all initial matrices but the embeddings
    output_init: float = 1.0  # factor on the initial wo and w_down; 0 starts from the identity
    dropout: float = 0.0  # of the embedding and of each branch before it joins the residual
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32
    remat: Literal["none", "full", "dots"] = "none"  # what the backward pass recomputes
    scan_unroll: int | None = None  # layers a scan iteration, see backends; none: by device

    NUMBERS: ClassVar[tuple[str, ...]] = (
        *("dropout", "residual", "init_scale", "output_init", "norm_eps", "rope_theta"),
        *("attention_softcap", "logit_softcap"),
    )

    def __post_init__(self):
        check_choices(self)
        counts = ("vocab_size", "context_length", "num_layers", "d_model", "num_heads")
        self.check_counts(*counts, "num_kv_heads", "head_dim", "d_ff", "window", "scan_unroll")
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim is None and self.d_model % self.num_heads:
            raise ValueError(
                f"d_model={self.d_model} must be a multiple of num_heads={self.num_heads}, "
                "or head_dim be given"
            )
        if self.positions == "rope" and self.sizes.Dh % 2:
            raise ValueError(f"head_dim={self.sizes.Dh} must be even with positions=rope")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even with positions=sinusoidal")
        positive = ("attention_softcap", "logit_softcap", "norm_eps", "rope_theta", "init_scale")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive")
        if self.rope_scaling is not None and (
            self.positions != "rope"
            or len(self.rope_scaling) != 4
            or min(self.rope_scaling) <= 0
            or self.rope_scaling[1] >= self.rope_scaling[2]
        ):
            raise ValueError(
                f"rope_scaling={self.rope_scaling} must be factor, low, high and length, above 0, "
                "low below high, with positions=rope"
            )
        self.check_dropout()

    @property
    def summary(self) -> str:
        sizes = f"{self.num_layers} layers, width {self.d_model}, {self.num_heads} heads"
        return f"{sizes}, context {self.context_length}, {self.activation}, {self.positions}"

    @property
    def reach(self) -> int | None:
        return None if self.window is None else self.num_layers * (self.window - 1)

    @property
    def max_positions(self) -> int | None:
        return self.context_length if self.positions == "learned" else None

    @property
    def attention(self) -> tuple[int, int, int]:
        return self.num_layers, self.num_heads, self.sizes.Dh

    def to_decode(self) -> "TransformerConfig":
        """Attention reaches back no further than it did in training.

        So a text may grow past the context length without distances the model has never seen.
        """
        window = min(self.window or self.context_length, self.context_length)
        return dataclasses.replace(self, window=window)

    @property
    def sizes(self) -> "Sizes":
        """The dimensions with every default filled in."""
        wide = 4 * self.d_model
        if self.activation in GATES:
            wide = -(-8 * self.d_model // 3 // 8) * 8
        return Sizes(
            N=self.num_layers,
            D=self.d_model,
            F=self.d_ff or wide,
            V=self.vocab_size or 0,
            H=self.num_heads,
            K=self.num_kv_heads or self.num_heads,
            Dh=self.head_dim or self.d_model // self.num_heads,
        )


class Sizes(NamedTuple):
    """Dimensions by their letters, see `jaxlm.core.arrays`."""

    N: int
    D: int
    F: int
    V: int
    H: int
    K: int
    Dh: int


class KVCache(struct.PyTreeNode):
    """Keys and values of the tokens so far.

    k, v: for each layer [B, K, T, Dh] in the compute dtype, apart so that a step writes its tokens
    in place. length: i32[B], tokens read of each row; entries behind it are never read, so
    lowering it takes tokens back. The token at position p is entry p, or p modulo T with a window.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    length: Array


def layer_specs(cfg: TransformerConfig) -> dict[str, Any]:
    """The weights that `run_layers` reads: the blocks, and the final norm where there is one."""
    N, D, F, _, H, K, Dh = cfg.sizes

    def vector(size, axis, init=zeros):
        return ParamSpec(shape=(N, size), axes=("layers", axis), init=init, num_in=0)

    def per_head(heads, axis):
        axes = ("layers", axis, "head_dim")
        return ParamSpec(shape=(N, heads, Dh), axes=axes, init=zeros, num_in=0)

    def matrix(shape, axes, num_in=1, scale=1.0):
        return ParamSpec(
            shape=(N, *shape),
            axes=("layers", *axes),
            init=xavier(cfg.init_scale * scale),
            num_in=num_in,
        )

    blocks = {
        "wq": matrix((D, H, Dh), ("embed", "heads", "head_dim")),
        "wk": matrix((D, K, Dh), ("embed", "kv_heads", "head_dim")),
        "wv": matrix((D, K, Dh), ("embed", "kv_heads", "head_dim")),
        "wo": matrix((H, Dh, D), ("heads", "head_dim", "embed"), 2, cfg.output_init),
        "w_up": matrix((D, F), ("embed", "mlp")),
        "w_down": matrix((F, D), ("mlp", "embed"), 1, cfg.output_init),
    }
    if cfg.activation in GATES:
        blocks["w_gate"] = matrix((D, F), ("embed", "mlp"))
    if cfg.bias or cfg.qkv_bias:
        blocks |= {"bq": per_head(H, "heads")}
        blocks |= {"bk": per_head(K, "kv_heads"), "bv": per_head(K, "kv_heads")}
    if cfg.bias:
        blocks["bo"] = vector(D, "embed")
        if cfg.activation not in GATES:
            blocks |= {"b_up": vector(F, "mlp"), "b_down": vector(D, "embed")}
    if cfg.qk_norm:
        blocks |= {name: vector(Dh, "head_dim", ones) for name in ("q_norm", "k_norm")}
    if cfg.norm_placement != "none":
        for name in ("attn_norm", "mlp_norm"):
            blocks[name] = vector(D, "embed", ones)
            if cfg.norm == "layer" and cfg.bias:
                blocks[f"{name}_bias"] = vector(D, "embed")

    specs: dict[str, Any] = {"blocks": blocks}
    if cfg.norm_placement == "pre":
        specs["final_norm"] = ParamSpec(shape=(D,), axes=("embed",), init=ones, num_in=0)
        if cfg.norm == "layer" and cfg.bias:
            specs["final_norm_bias"] = dataclasses.replace(specs["final_norm"], init=zeros)
    return specs


def param_specs(cfg: TransformerConfig) -> dict[str, Any]:
    """Every weight of the model, by path."""
    D, V = cfg.d_model, cfg.known_vocab_size
    sigma = D**-0.5 if cfg.tied_head else 1.0
    table = functools.partial(ParamSpec, axes=("vocab", "embed"))
    specs = {"embed": table(shape=(V, D), init=truncated_normal(sigma)), **layer_specs(cfg)}
    if cfg.positions == "learned":
        specs["positions"] = ParamSpec(
            shape=(cfg.context_length, D), axes=("positions", "embed"), init=truncated_normal(0.01)
        )
    if not cfg.tied_head:
        specs["unembed"] = ParamSpec(
            shape=(D, V), axes=("embed", "vocab"), init=xavier(cfg.init_scale)
        )
    if cfg.head_bias:
        specs["unembed_bias"] = ParamSpec(shape=(V,), axes=("vocab",), init=zeros, num_in=0)
    return specs


def block(
    x: Array,
    w: Params,
    cfg: TransformerConfig,
    *,
    angles: tuple[Array, Array] | None,
    attend: Callable[..., tuple[Array, Any]],
    constrain: Callable[..., Array] = unconstrained,
    linear: Callable[..., Array] = plain_linear,
    key: Array | None = None,
    dropout: Array | float = 0.0,
) -> tuple[Array, Any]:
    """One layer: attention, then feed-forward, each a branch of the residual stream.

    Args:
      x: [B, S, D]; w: this layer's weights; angles: (cos, sin) of RoPE or None.
      attend: (q [B,S,H,Dh], k, v [B,S,K,Dh]) -> (out [B,S,H,Dh], extra).
      constrain, linear, key: as of `run_layers`; dropout: the rate.
    Returns:
      x [B, S, D] and the `extra` of attend.
    """
    attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)

    def project(h, name, bias):
        return add_bias(linear(h, w[name]), w.get(bias))  # [B, S, heads, Dh]

    def attention(h):
        q, k, v = project(h, "wq", "bq"), project(h, "wk", "bk"), project(h, "wv", "bv")
        if cfg.qk_norm:
            q, k = rms_norm(q, w["q_norm"], cfg.norm_eps), rms_norm(k, w["k_norm"], cfg.norm_eps)
        if angles is not None:
            q, k = (apply_rope(y, *angles, layout=cfg.rope_layout) for y in (q, k))
        out, extra = attend(q, k, v)
        return add_bias(linear(out, w["wo"], 2), w.get("bo")), extra

    def mlp(h):
        if cfg.activation in GATES:
            weights, gate = (w["w_gate"], w["w_up"], w["w_down"]), GATES[cfg.activation]
            return gated_feedforward(h, *weights, gate=gate, linear=linear), None
        biases = {"b_up": w.get("b_up"), "b_down": w.get("b_down")}
        act = ACTIVATIONS[cfg.activation]
        return feedforward(h, w["w_up"], w["w_down"], activation=act, linear=linear, **biases), None

    def branch(x, layer, norm, key):
        y, extra = layer(_norm(x, w, norm, cfg) if cfg.norm_placement == "pre" else x)
        x = jnp.asarray(cfg.residual, x.dtype) * x + drop(y, dropout, key)
        x = _norm(x, w, norm, cfg) if cfg.norm_placement == "post" else x
        return constrain(x, ("batch", "seq", "embed_act")), extra

    x, extra = branch(x, attention, "attn_norm", attn_key)
    x, _ = branch(x, mlp, "mlp_norm", mlp_key)
    return x, extra


def _norm(x, w, name, cfg):
    if cfg.norm == "rms":
        return rms_norm(x, w[name], cfg.norm_eps)
    return layer_norm(x, w[name], w.get(f"{name}_bias"), cfg.norm_eps)


def _in_compute_dtype(params: Params, specs: dict[str, Any], cfg: TransformerConfig) -> Params:
    """Those of `specs`: matrices in `cfg.dtype`; tables, gains and biases, whose gradients add up
    tokens, stay."""
    return trees.map_with_path(
        lambda _, spec, w: w.astype(cfg.dtype) if spec.kind == "matrix" else w, specs, params
    )


def _positions(length, segment_ids):
    return jnp.arange(length) if segment_ids is None else segment_positions(segment_ids)


def _embed(params, tokens, positions, cfg, constrain=unconstrained):
    x = constrain(params["embed"], ("vocab", "embed_act"))[tokens]
    if cfg.positions == "learned":
        x = x + constrain(params["positions"], ("positions", "embed_act"))[positions]
    if cfg.positions == "sinusoidal":
        x = x + sinusoidal(positions, cfg.d_model)
    return x.astype(cfg.dtype)


def embed(
    params: Params,
    tokens: Array,
    cfg: TransformerConfig,
    *,
    segment_ids: Array | None = None,
    constrain: Callable[..., Array] = unconstrained,
) -> Array:
    """Tokens i32[B, S], with positions where they are added -> [B, S, D] in cfg.dtype."""
    if cfg.positions == "learned" and tokens.shape[1] > cfg.context_length:
        raise ValueError(
            f"{tokens.shape[1]} tokens, but positions are learned up to "
            f"context_length={cfg.context_length}"
        )
    return _embed(params, tokens, _positions(tokens.shape[1], segment_ids), cfg, constrain)


def _angles(positions, cfg):
    if cfg.positions != "rope":
        return None
    return rope_angles(positions, cfg.sizes.Dh, cfg.rope_theta, cfg.rope_scaling)


def with_remat(run_block: Callable, remat: str) -> Callable:
    """`run_block`, whose backward pass computes again what `TransformerConfig.remat` says."""
    if remat == "none":
        return run_block
    policies = {"full": None, "dots": jax.checkpoint_policies.checkpoint_dots}
    return jax.checkpoint(run_block, policy=policies[remat])


def _scan_blocks(x, params, cfg, run_block, per_layer, unroll=None):
    """Scans `run_block(x, w, part of per_layer) -> (x, extra)` over the stacked layers."""
    run_block = with_remat(run_block, cfg.remat)
    return jax.lax.scan(
        lambda x, each: run_block(x, *each),
        x,
        (params["blocks"], per_layer),
        unroll=unroll or cfg.scan_unroll or 1,
    )


def run_layers(
    params: Params,
    x: Array,
    cfg: TransformerConfig,
    *,
    segment_ids: Array | None = None,
    attend: Callable[..., Array] = plain_attend,
    constrain: Callable[..., Array] = unconstrained,
    linear: Callable[..., Array] = plain_linear,
    key: Array | None = None,
    dropout: Array | float | None = None,
    probes: Array | None = None,
    unroll: int | None = None,
) -> Array:
    """All layers over an embedding, whatever was embedded.

    Args:
      params: those of `layer_specs`; what else is in it is not read.
      x: [B, S, D] in cfg.dtype, positions but those of rope already in it.
      segment_ids: i32[B, S], packed rows: only equal ids see each other and positions restart with
        each segment. Padding is a segment too.
      attend: as `jaxlm.nn.attention.attend`. linear: as `jaxlm.nn.linear.linear`.
      constrain: (x, logical axes) -> x, for sharding.
      key: of dropout, consumed; None means no dropout. dropout: a rate in place of cfg.dropout,
        may be traced.
      probes: [N, B, S, D], added to the residual stream before each layer. At zero they change
        nothing, and the gradient with respect to them is that of the stream.
      unroll: layers a scan iteration, in place of cfg.scan_unroll.
    Returns:
      [B, S, D] in cfg.dtype, after the final norm where there is one.
    """
    params = _in_compute_dtype(params, layer_specs(cfg), cfg)
    rate = cfg.dropout if dropout is None else dropout
    keys = None if key is None else jax.random.split(key, cfg.num_layers + 1)
    angles = _angles(_positions(x.shape[1], segment_ids), cfg)

    def masked(q, k, v):
        kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}
        return attend(q, k, v, q_segments=segment_ids, kv_segments=segment_ids, **kinds), None

    def run_block(x, w, each):
        key, probe = each
        options = {"angles": angles, "attend": masked, "constrain": constrain, "linear": linear}
        x = x if probe is None else x + probe
        return block(x, w, cfg, key=key, dropout=rate, **options)

    x = drop(x, rate, None if keys is None else keys[-1])
    x = constrain(x, ("batch", "seq", "embed_act"))
    per_layer = (None if keys is None else keys[:-1], probes)
    x, _ = _scan_blocks(x, params, cfg, run_block, per_layer, unroll)
    return _norm(x, params, "final_norm", cfg) if cfg.norm_placement == "pre" else x


def hidden(
    params: Params,
    tokens: Array,
    cfg: TransformerConfig,
    *,
    segment_ids: Array | None = None,
    constrain: Callable[..., Array] = unconstrained,
    **options: Any,
) -> Array:
    """The residual stream that the head reads.

    Args:
      tokens: i32[B, S].
      segment_ids, constrain, options: as of `run_layers`.
    Returns:
      [B, S, D] in cfg.dtype, after the final norm where there is one.
    """
    x = embed(params, tokens, cfg, segment_ids=segment_ids, constrain=constrain)
    return run_layers(params, x, cfg, segment_ids=segment_ids, constrain=constrain, **options)


def unembed(params: Params, x: Array, cfg: TransformerConfig) -> Array:
    """Next-token logits f32[B, S, V] from `hidden` [B, S, D], products in cfg.dtype."""
    w = params["embed"].T if cfg.tied_head else params["unembed"]
    return finish_logits(float32_product(x, w.astype(cfg.dtype)), params, cfg)


def finish_logits(logits: Array, params: Params, cfg: TransformerConfig) -> Array:
    """What follows the product with the head: its bias and the softcap."""
    if cfg.head_bias:
        logits = logits + params["unembed_bias"]
    if cfg.logit_softcap is not None:
        logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
    return logits


def forward(params: Params, tokens: Array, cfg: TransformerConfig, **options) -> Array:
    """Next-token logits f32[B, S, V]; options as for `hidden`."""
    return unembed(params, hidden(params, tokens, cfg, **options), cfg)


def init_cache(cfg: TransformerConfig, batch_size: int, length: int) -> KVCache:
    """An empty cache of `length` entries a row; with a window a text may be longer."""
    N, _, _, _, _, K, Dh = cfg.sizes
    empty = (jnp.zeros((batch_size, K, length, Dh), cfg.dtype),) * N
    return KVCache(k=empty, v=empty, length=jnp.zeros(batch_size, jnp.int32))


def take_back(cache: KVCache, length: Array) -> KVCache:
    """The cache with only the first length[b] tokens of each row, i32[B]."""
    return cache.replace(length=length)


def decoding_params(params: Params, cfg: TransformerConfig) -> Params:
    """The weights as `extend` reads them fastest: in cfg.dtype, `blocks` one dict a layer.

    From stacked weights each layer's are copied out again for every token; these are read where
    they are, by a program that repeats the block for each layer and so takes longer to compile.
    """
    params = _in_compute_dtype(params, param_specs(cfg), cfg)
    layers = [{name: w[i] for name, w in params["blocks"].items()} for i in range(cfg.num_layers)]
    return {**params, "blocks": tuple(layers)}


def first_layers(
    params: Params, cfg: TransformerConfig, num_layers: int
) -> tuple[Params, TransformerConfig]:
    """The first of the layers with the same tables, final norm and head, as a model of its own."""
    blocks = {name: w[:num_layers] for name, w in params["blocks"].items()}
    return {**params, "blocks": blocks}, dataclasses.replace(cfg, num_layers=num_layers)


def extend(
    params: Params,
    tokens: Array,
    cache: KVCache,
    cfg: TransformerConfig,
    *,
    lengths: Array | None = None,
    linear: Callable[..., Array] = plain_linear,
    unembed: Callable[..., Array] = unembed,
) -> tuple[Array, KVCache]:
    """Appends `tokens` i32[B, S] to each row of the cache.

    Rows may hold different lengths. The caller keeps length + S within the cache; writes beyond
    its end would move back over older entries. With a window the cache is a ring, see `window` in
    `LanguageModel`.

    Args:
      params: of the model, or `decoding_params` of them.
      lengths: i32[B], how many of its tokens each row takes; the rest is padding. None: all S.
      linear, unembed: as those of this model, for weights that are kept otherwise.
    Returns:
      logits f32[B, S, V] after each of the tokens, and the cache with the tokens taken.
    """
    if not cfg.causal:
        raise ValueError("causal=false: an encoder reads ahead, so it has no cached decoding")
    apart = isinstance(params["blocks"], tuple)
    params = params if apart else _in_compute_dtype(params, param_specs(cfg), cfg)
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1])
    angles = _angles(positions, cfg)
    S, T = tokens.shape[1], cache.k[0].shape[2]
    write, at, kv_positions = _write, cache.length, None
    if cfg.window is not None:
        write, at = (_write if S == 1 else _write_around), cache.length % T
        kv_positions = _ring_positions(cache.length + S, T)

    def run_block(x, w, kv):
        def cached(q, k, v):
            new = (jnp.swapaxes(each, 1, 2) for each in (k, v))
            held = [write(*each, at) for each in zip(kv, new, strict=True)]
            k, v = (jnp.swapaxes(each, 1, 2) for each in held)
            # Entries behind a row's length have later positions: the causal mask drops them.
            kinds = {"window": cfg.window, "softcap": cfg.attention_softcap}
            where = {"q_positions": positions, "kv_positions": kv_positions}
            return plain_attend(q, k, v, causal=True, **where, **kinds), held

        return block(x, w, cfg, angles=angles, attend=cached, linear=linear)

    x = _embed(params, tokens, positions, cfg)
    if apart:
        held = []
        for w, *kv in zip(params["blocks"], cache.k, cache.v, strict=True):
            x, kv = run_block(x, w, kv)
            held.append(kv)
        k, v = zip(*held, strict=True)
    else:
        stacked = (jnp.stack(cache.k), jnp.stack(cache.v))
        x, held = _scan_blocks(x, params, cfg, run_block, stacked)
        k, v = map(tuple, held)
    if cfg.norm_placement == "pre":
        x = _norm(x, params, "final_norm", cfg)
    taken = S if lengths is None else lengths
    return unembed(params, x, cfg), KVCache(k=k, v=v, length=cache.length + taken)


@jax.vmap
def _write(old, new, at):
    """Entries at, at + 1, ... of [B, K, T, Dh] replaced by those of [B, K, S, Dh]."""
    return jax.lax.dynamic_update_slice(old, new, (0, at, 0))


@jax.vmap
def _write_around(old, new, at):
    """The same, going on at entry 0 behind the last."""
    offset = (jnp.arange(old.shape[1]) - at) % old.shape[1]
    entries = new[:, jnp.minimum(offset, new.shape[1] - 1)]
    return jnp.where((offset < new.shape[1])[:, None], entries, old)


def _ring_positions(end, num_entries):
    """The newest position before end, i32[B], that each entry of a ring can hold: i32[B, T].

    Entries that hold none yet come after every query. Those that hold a token taken back are told
    to be T older than it is, which is out of the window.
    """
    newest = end[:, None] - 1
    positions = newest - (newest - jnp.arange(num_entries)) % num_entries
    return jnp.where(positions < 0, jnp.iinfo(jnp.int32).max // 2, positions)


class Trace(NamedTuple):
    """What `trace` saw: the residual stream after each layer, [N, B, S, D], attention maps, and
    what each head gave to `wo`."""

    residual: Array
    attention: Array  # f32[N, B, H, S, S]
    heads: Array  # [N, B, S, H, Dh]


def trace(params: Params, tokens: Array, cfg: TransformerConfig) -> Trace:
    """What the model does with tokens i32[B, S]."""
    return trace_layers(params, embed(params, tokens, cfg), cfg)


def trace_layers(
    params: Params, x: Array, cfg: TransformerConfig, *, segment_ids: Array | None = None
) -> Trace:
    """Runs the same block and keeps what each layer and head did.

    Arguments as of `run_layers`.
    """
    params = _in_compute_dtype(params, layer_specs(cfg), cfg)
    angles = _angles(_positions(x.shape[1], segment_ids), cfg)
    kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}
    kinds |= {"q_segments": segment_ids, "kv_segments": segment_ids}

    def watched(q, k, v):
        out = plain_attend(q, k, v, **kinds)
        return out, (attention_weights(q, k, **kinds), out)

    def run_block(x, w, _):
        x, of_heads = block(x, w, cfg, angles=angles, attend=watched)
        return x, (x, *of_heads)

    _, seen = _scan_blocks(x, params, cfg, run_block, None)
    return Trace(*seen)


def build(cfg: TransformerConfig, **options: Any) -> LanguageModel:
    """The config's model as functions of parameters and tokens.

    options: attend, linear, constrain and unroll of `run_layers`.
    """
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=functools.partial(hidden, cfg=cfg, **options),
        unembed=functools.partial(unembed, cfg=cfg),
        head=(
            "embed" if cfg.tied_head else "unembed",
            *(("unembed_bias",) if cfg.head_bias else ()),
        ),
        init_cache=functools.partial(init_cache, cfg),
        extend=functools.partial(extend, cfg=cfg),
        decoding_params=functools.partial(decoding_params, cfg=cfg),
        take_back=take_back,
        window=cfg.window,
    )
