"""The transformer, decoder and encoder: one block, scanned over stacked layers.

Shapes use the letters of `jaxlm.core.arrays`. Read `param_specs`, `block` and `hidden`: that is
the model. `extend` runs the same block against a cache, `trace` looks inside it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ParamSpec, ones, truncated_normal, xavier, zeros
from jaxlm.models.api import LanguageModel
from jaxlm.nn.attention import attend as plain_attend
from jaxlm.nn.attention import attention_weights
from jaxlm.nn.dropout import dropout as drop
from jaxlm.nn.feedforward import ACTIVATIONS, feedforward, swiglu
from jaxlm.nn.linear import add_bias, float32_product
from jaxlm.nn.linear import linear as plain_linear
from jaxlm.nn.norms import layer_norm, rms_norm
from jaxlm.nn.positions import segment_positions, sinusoidal
from jaxlm.nn.rope import apply_rope, rope_angles


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Architecture. The defaults are a small Llama-style decoder."""

    vocab_size: int | None = None  # None: taken from the tokenizer
    context_length: int = 256  # S of a training row; the size of a learned position table
    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: d_model / num_heads
    d_ff: int | None = None  # None: 4 * d_model; 8/3 * d_model in whole eights for swiglu
    activation: Literal["swiglu", "gelu", "relu", "relu_squared", "silu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    norm_placement: Literal["pre", "post", "none"] = "pre"
    norm_eps: float = 1e-5
    residual: float = 1.0  # factor of the skip connection; 0 removes it
    positions: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_layout: Literal["interleaved", "half"] = "interleaved"
    rope_theta: float = 10_000.0
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

    def __post_init__(self):
        counts = ("vocab_size", "context_length", "num_layers", "d_model", "num_heads")
        for name in (*counts, "num_kv_heads", "head_dim", "d_ff", "window", "scan_unroll"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")

    @property
    def sizes(self) -> "Sizes":
        """The dimensions with every default filled in."""
        wide = 4 * self.d_model
        if self.activation == "swiglu":
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


@struct.dataclass
class KVCache:
    """Keys and values of the tokens so far.

    k, v: for each layer [B, K, T, Dh] in the compute dtype, apart so that a step writes its tokens
    in place. length: i32[B], tokens held in each row; entries behind it are never read, so
    lowering it takes tokens back.
    """

    k: tuple[Array, ...]
    v: tuple[Array, ...]
    length: Array


def param_specs(cfg: TransformerConfig) -> dict[str, Any]:
    """Every weight of the model, by path."""
    N, D, F, V, H, K, Dh = cfg.sizes
    if not V:
        raise ValueError("vocab_size must be given before the weights can be declared")

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
    if cfg.activation == "swiglu":
        blocks["w_gate"] = matrix((D, F), ("embed", "mlp"))
    if cfg.bias or cfg.qkv_bias:
        blocks |= {"bq": per_head(H, "heads")}
        blocks |= {"bk": per_head(K, "kv_heads"), "bv": per_head(K, "kv_heads")}
    if cfg.bias:
        blocks["bo"] = vector(D, "embed")
        if cfg.activation != "swiglu":
            blocks |= {"b_up": vector(F, "mlp"), "b_down": vector(D, "embed")}
    if cfg.qk_norm:
        blocks |= {name: vector(Dh, "head_dim", ones) for name in ("q_norm", "k_norm")}
    if cfg.norm_placement != "none":
        for name in ("attn_norm", "mlp_norm"):
            blocks[name] = vector(D, "embed", ones)
            if cfg.norm == "layer" and cfg.bias:
                blocks[f"{name}_bias"] = vector(D, "embed")

    sigma = D**-0.5 if cfg.tied_head else 1.0
    table = functools.partial(ParamSpec, axes=("vocab", "embed"))
    specs: dict[str, Any] = {"embed": table(shape=(V, D), init=truncated_normal(sigma))}
    specs["blocks"] = blocks
    if cfg.positions == "learned":
        specs["positions"] = ParamSpec(
            shape=(cfg.context_length, D), axes=("positions", "embed"), init=truncated_normal(0.01)
        )
    if cfg.norm_placement == "pre":
        specs["final_norm"] = ParamSpec(shape=(D,), axes=("embed",), init=ones, num_in=0)
        if cfg.norm == "layer" and cfg.bias:
            specs["final_norm_bias"] = dataclasses.replace(specs["final_norm"], init=zeros)
    if not cfg.tied_head:
        specs["unembed"] = ParamSpec(
            shape=(D, V), axes=("embed", "vocab"), init=xavier(cfg.init_scale)
        )
    if cfg.head_bias:
        specs["unembed_bias"] = ParamSpec(shape=(V,), axes=("vocab",), init=zeros, num_in=0)
    return specs


def _identity(x, axes):
    return x


def block(
    x, w, cfg, *, angles, attend, constrain=_identity, linear=plain_linear, key=None, dropout=0.0
):
    """One layer: attention, then feed-forward, each a branch of the residual stream.

    Args:
      x: [B, S, D]; w: this layer's weights; angles: (cos, sin) of RoPE or None.
      attend: (q [B,S,H,Dh], k, v [B,S,K,Dh]) -> (out [B,S,H,Dh], extra).
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
            q, k = (apply_rope(y, *angles, cfg.rope_layout) for y in (q, k))
        out, extra = attend(q, k, v)
        return add_bias(linear(out, w["wo"], 2), w.get("bo")), extra

    def mlp(h):
        if cfg.activation == "swiglu":
            return swiglu(h, w["w_gate"], w["w_up"], w["w_down"], linear=linear), None
        biases = {"b_up": w.get("b_up"), "b_down": w.get("b_down")}
        act = ACTIVATIONS[cfg.activation]
        return feedforward(h, w["w_up"], w["w_down"], activation=act, linear=linear, **biases), None

    def branch(x, layer, norm, key):
        pre, post = cfg.norm_placement == "pre", cfg.norm_placement == "post"
        y, extra = layer(_norm(x, w, norm, cfg) if pre else x)
        x = jnp.asarray(cfg.residual, x.dtype) * x + drop(y, dropout, key)
        return constrain(
            _norm(x, w, norm, cfg) if post else x, ("batch", "seq", "embed_act")
        ), extra

    x, extra = branch(x, attention, "attn_norm", attn_key)
    x, _ = branch(x, mlp, "mlp_norm", mlp_key)
    return x, extra


def _norm(x, w, name, cfg):
    if cfg.norm == "rms":
        return rms_norm(x, w[name], cfg.norm_eps)
    return layer_norm(x, w[name], w.get(f"{name}_bias"), cfg.norm_eps)


def _in_compute_dtype(params: Params, cfg: TransformerConfig) -> Params:
    """Matrices in `cfg.dtype`; tables, gains and biases, whose gradients add up tokens, stay."""
    return trees.map_with_path(
        lambda _, spec, w: w.astype(cfg.dtype) if spec.kind == "matrix" else w,
        param_specs(cfg),
        params,
    )


def _embed(params, tokens, positions, cfg, constrain=_identity):
    x = constrain(params["embed"], ("vocab", "embed_act"))[tokens]
    if cfg.positions == "learned":
        x = x + constrain(params["positions"], ("positions", "embed_act"))[positions]
    if cfg.positions == "sinusoidal":
        x = x + sinusoidal(positions, cfg.d_model)
    return x.astype(cfg.dtype)


def _angles(positions, cfg):
    if cfg.positions != "rope":
        return None
    return rope_angles(positions, cfg.sizes.Dh, cfg.rope_theta)


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


def hidden(
    params: Params,
    tokens: Array,
    cfg: TransformerConfig,
    *,
    segment_ids: Array | None = None,
    attend: Callable[..., Array] = plain_attend,
    constrain: Callable[..., Array] = _identity,
    linear: Callable[..., Array] = plain_linear,
    key: Array | None = None,
    dropout: Array | float | None = None,
    probes: Array | None = None,
    unroll: int | None = None,
) -> Array:
    """The residual stream that the head reads.

    Args:
      tokens: i32[B, S]. segment_ids: i32[B, S], packed rows: only equal ids see each other and
        positions restart with each segment.
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
    if cfg.positions == "learned" and tokens.shape[1] > cfg.context_length:
        raise ValueError(
            f"{tokens.shape[1]} tokens, but positions are learned up to "
            f"context_length={cfg.context_length}"
        )
    params = _in_compute_dtype(params, cfg)
    positions = jnp.arange(tokens.shape[1])
    if segment_ids is not None:
        positions = segment_positions(segment_ids)
    rate = cfg.dropout if dropout is None else dropout
    keys = None if key is None else jax.random.split(key, cfg.num_layers + 1)
    angles = _angles(positions, cfg)

    def masked(q, k, v):
        kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}
        return attend(q, k, v, q_segments=segment_ids, kv_segments=segment_ids, **kinds), None

    def run_block(x, w, each):
        key, probe = each
        options = {"angles": angles, "attend": masked, "constrain": constrain, "linear": linear}
        x = x if probe is None else x + probe
        return block(x, w, cfg, key=key, dropout=rate, **options)

    x = _embed(params, tokens, positions, cfg, constrain)
    x = drop(x, rate, None if key is None else keys[-1])
    x = constrain(x, ("batch", "seq", "embed_act"))
    per_layer = (None if key is None else keys[:-1], probes)
    x, _ = _scan_blocks(x, params, cfg, run_block, per_layer, unroll)
    return _norm(x, params, "final_norm", cfg) if cfg.norm_placement == "pre" else x


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
    """An empty cache for up to `length` tokens a row."""
    N, _, _, _, _, K, Dh = cfg.sizes
    empty = (jnp.zeros((batch_size, K, length, Dh), cfg.dtype),) * N
    return KVCache(k=empty, v=empty, length=jnp.zeros(batch_size, jnp.int32))


def decoding_params(params: Params, cfg: TransformerConfig) -> Params:
    """The weights as `extend` reads them fastest: in cfg.dtype, `blocks` one dict a layer.

    From stacked weights each layer's are copied out again for every token; these are read where
    they are, by a program that repeats the block for each layer and so takes longer to compile.
    """
    params = _in_compute_dtype(params, cfg)
    layers = [{name: w[i] for name, w in params["blocks"].items()} for i in range(cfg.num_layers)]
    return {**params, "blocks": tuple(layers)}


def extend(
    params: Params,
    tokens: Array,
    cache: KVCache,
    cfg: TransformerConfig,
    *,
    linear: Callable[..., Array] = plain_linear,
    unembed: Callable[..., Array] = unembed,
) -> tuple[Array, KVCache]:
    """Appends `tokens` i32[B, S] to each row of the cache.

    Rows may hold different lengths. The caller keeps length + S within the cache; writes beyond
    its end would move back over older entries.

    Args:
      params: of the model, or `decoding_params` of them.
      linear, unembed: as those of this model, for weights that are kept otherwise.
    Returns:
      logits f32[B, S, V] after each of the tokens, and the cache with S more tokens a row.
    """
    if not cfg.causal:
        raise ValueError("causal=false: an encoder reads ahead, so it has no cached decoding")
    apart = isinstance(params["blocks"], tuple)
    params = params if apart else _in_compute_dtype(params, cfg)
    positions = cache.length[:, None] + jnp.arange(tokens.shape[1])
    angles = _angles(positions, cfg)
    write = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (0, at, 0)))

    def run_block(x, w, kv):
        def cached(q, k, v):
            new = (jnp.swapaxes(each, 1, 2) for each in (k, v))
            held = [write(*each, cache.length) for each in zip(kv, new, strict=True)]
            k, v = (jnp.swapaxes(each, 1, 2) for each in held)
            # Entries behind a row's length have later positions: the causal mask drops them.
            kinds = {"window": cfg.window, "softcap": cfg.attention_softcap}
            return plain_attend(q, k, v, causal=True, q_positions=positions, **kinds), held

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
    return unembed(params, x, cfg), KVCache(k=k, v=v, length=cache.length + tokens.shape[1])


class Trace(NamedTuple):
    """What `trace` saw: the residual stream after each layer, [N, B, S, D], and attention maps."""

    residual: Array
    attention: Array  # f32[N, B, H, S, S]


def trace(params: Params, tokens: Array, cfg: TransformerConfig) -> Trace:
    """Runs the same block and keeps each layer's residual stream and attention map."""
    params = _in_compute_dtype(params, cfg)
    positions = jnp.arange(tokens.shape[1])
    kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}

    def watched(q, k, v):
        return plain_attend(q, k, v, **kinds), attention_weights(q, k, **kinds)

    def run_block(x, w, _):
        angles = _angles(positions, cfg)
        x, maps = block(x, w, cfg, angles=angles, attend=watched)
        return x, (x, maps)

    _, seen = _scan_blocks(_embed(params, tokens, positions, cfg), params, cfg, run_block, None)
    return Trace(*seen)


def build(cfg: TransformerConfig, **options: Any) -> LanguageModel:
    """The config's model as functions of parameters and tokens.

    options: attend, linear, constrain and unroll of `hidden`.
    """
    return LanguageModel(
        specs=param_specs(cfg),
        hidden=functools.partial(hidden, cfg=cfg, **options),
        unembed=functools.partial(unembed, cfg=cfg),
        head=("embed" if cfg.tied_head else "unembed", *["unembed_bias"][: cfg.head_bias]),
        init_cache=functools.partial(init_cache, cfg),
        extend=functools.partial(extend, cfg=cfg),
        decoding_params=functools.partial(decoding_params, cfg=cfg),
    )
