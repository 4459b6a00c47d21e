"""What a layer of the model holds of a device's memory in training, before anything is compiled.

No formula for each kind of model, attention and remat: a layer is differentiated with shapes in
place of arrays, and what its backward pass asks for is added up. JAX decides that, and a compiler
keeps it as it stands where layers are scanned.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.params import abstract_params
from jaxlm.models import kinds, transformer
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.rope import rope_angles


class LayerBytes(NamedTuple):
    """Of one layer and one row of a batch, on one device.

    kept: from the layer's forward to its backward pass, which comes much later. whole: in its
    backward pass, when what was not kept has been computed again. number: of such layers.
    """

    kept: int
    whole: int
    number: int


def layer_bytes(cfg: AnyModelConfig, *, segments: bool, **functions: Callable) -> LayerBytes:
    """What one row of `context_length` tokens makes a layer hold.

    All of a model other than a transformer counts as one layer.

    Args:
      cfg: of what one device computes, see `share_of`.
      segments: whether rows are packed. functions: attend, where there is attention, and linear, as
        of the model's `build`.
    """

    def of_a_row(remat):  # what does not grow with the rows, such as weights, is not counted
        one, two = (kept_bytes(cfg, remat, rows, segments, **functions) for rows in (1, 2))
        return two - one

    kept_bytes = _kept_of_block if isinstance(cfg, TransformerConfig) else _kept_of_model
    whole = of_a_row("none")
    kept = whole if cfg.remat == "none" else of_a_row(cfg.remat)
    return LayerBytes(kept, whole, cfg.attention[0] or 1)


def _kept_of_model(cfg, remat, rows, segments, *, linear) -> int:
    """Of all that the backward pass is given of the model's hidden layers, which have no remat."""
    del remat
    model = kinds.build(cfg, linear=linear)
    tokens = jax.ShapeDtypeStruct((rows, cfg.context_length), jnp.int32)
    key = jax.random.key(0) if cfg.dropout else None

    def saved(params, tokens, ids):
        return jax.vjp(lambda p: model.hidden(p, tokens, segment_ids=ids, key=key), params)[1]

    ids = tokens if segments else None
    return tree_bytes(jax.eval_shape(saved, abstract_params(model.specs), tokens, ids))


def _kept_of_block(cfg, remat, rows, segments, *, attend, linear) -> int:
    """Of all that the backward pass of a layer is given from the forward pass."""
    S, sizes = cfg.context_length, cfg.sizes
    shape = jax.ShapeDtypeStruct
    weights = {
        name: shape(spec.layer.shape, cfg.dtype if spec.kind == "matrix" else spec.dtype)
        for name, spec in transformer.param_specs(cfg)["blocks"].items()
    }
    ids = shape((rows, S), jnp.int32) if segments else None
    kinds = {"causal": cfg.causal, "window": cfg.window, "softcap": cfg.attention_softcap}

    def layer(x, w, ids, positions):
        turned = cfg.positions == "rope"
        return transformer.block(
            x,
            w,
            cfg,
            angles=rope_angles(positions, sizes.Dh, cfg.rope_theta) if turned else None,
            attend=lambda *qkv: (attend(*qkv, q_segments=ids, kv_segments=ids, **kinds), None),
            linear=linear,
            key=jax.random.key(0) if cfg.dropout else None,
            dropout=cfg.dropout,
        )[0]

    def saved(x, w, ids, positions):
        _, pull = jax.vjp(lambda x, w: run(x, w, ids, positions), x, w)
        return pull

    run = transformer.with_remat(layer, remat)
    x = shape((rows, S, sizes.D), cfg.dtype)
    return tree_bytes(jax.eval_shape(saved, x, weights, ids, ids or shape((S,), jnp.int32)))


def tree_bytes(tree: Any) -> int:
    """Of all arrays, or shapes of arrays, in a tree."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def share_of(cfg: AnyModelConfig, parts: Mapping[str, int]) -> AnyModelConfig:
    """The config of the part of each layer that one device computes; of a transformer alone.

    parts: {logical axis: over how many devices it is split}; other axes are whole.
    """
    if not isinstance(cfg, TransformerConfig):
        return cfg
    sizes = cfg.sizes
    heads, kv_heads, mlp, vocab = (
        size // parts.get(axis, 1)
        for size, axis in zip(
            (sizes.H, sizes.K, sizes.F, sizes.V), ("heads", "kv_heads", "mlp", "vocab"), strict=True
        )
    )
    return dataclasses.replace(
        cfg,
        num_heads=heads,
        num_kv_heads=math.gcd(heads, kv_heads),  # whole beside split heads, some have no reader
        head_dim=sizes.Dh,
        d_ff=mlp,
        vocab_size=vocab,
    )
