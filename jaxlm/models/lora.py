"""LoRA: each chosen matrix W becomes W + scale * A B, and only A and B are trained.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.

The model knows nothing of it. `merge` gives ordinary weights: it is the definition. `attach` gives
the same tree with each sum left undone until a layer uses it; that is what training runs on.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxlm.core import trees
from jaxlm.core.arrays import Array, Params
from jaxlm.core.config import FLAG, ConfigError, check_choices, nearest
from jaxlm.core.params import ParamSpec, zeros

A, B = "lora_a", "lora_b"  # "blocks/wq" has its adapters at "blocks/wq/lora_a" and ".../lora_b"
ALL = "all"

Scaling = Literal["alpha_over_r", "alpha_over_sqrt_r"]
Hypers = Mapping[str, Array | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which matrices get adapters, and how large.

    rank: R, the columns of A and rows of B; None: no adapters, every weight is trained.
    alpha: numerator of the scale of A B.
    targets: names of stacked matrices, such as wq and wv (the paper's choice), or "all" of them.
    scaling: alpha / R as in the paper, or alpha / sqrt(R), which keeps the size of what a layer
      learns the same at every rank (Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for
      Fine-Tuning with LoRA", theorem 3.2).
    """

    rank: int | None = None
    alpha: float = 16.0
    targets: tuple[str, ...] = ("wq", "wv")
    scaling: Scaling = "alpha_over_r"

    def __post_init__(self):
        check_choices(self)
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1, or none for no adapters")
        if self.alpha <= 0:
            raise ValueError(f"alpha={self.alpha} must be positive")
        if not self.targets:
            raise ValueError(f"targets must name at least one matrix, or be {ALL}")


def hyper_values(cfg: LoraConfig) -> dict[str, float]:
    """The numbers of `cfg`, to be traced; none where there are no adapters."""
    if cfg.rank is None:
        return {}
    return {"lora_alpha": cfg.alpha, "lora_rank": float(cfg.rank)}


def target_specs(specs: dict, targets: tuple[str, ...]) -> dict[str, ParamSpec]:
    """{"blocks/wq": its spec} of the stacked matrices that `targets` names.

    Raises:
      ConfigError: a name that no stacked matrix has.
    """
    matrices = {
        path: spec
        for path, spec in trees.flatten(specs).items()
        if spec.stacked and spec.kind == "matrix"
    }
    names = [path.rpartition(trees.SEPARATOR)[2] for path in matrices]
    for target in targets:
        if target not in (*names, ALL):
            raise ConfigError(
                f"{FLAG}lora.targets={','.join(targets)}: this model has no stacked matrix "
                f"'{target}'{nearest(target, names)} (matrices: {', '.join(names)}, or {ALL})"
            )
    chosen = set(names) if ALL in targets else set(targets)
    return {
        path: spec
        for (path, spec), name in zip(matrices.items(), names, strict=True)
        if name in chosen
    }


def adapter_specs(specs: dict, cfg: LoraConfig) -> dict[str, Any]:
    """Specs of the adapters of a model with `specs`, by the path of the matrix they belong to.

    A is [N, inputs..., R] and B [N, R, outputs...]: which dimensions of a matrix are inputs is
    what its spec says. B starts at zero, so training starts from the base.
    """
    adapters = {}
    for path, spec in target_specs(specs, cfg.targets).items():
        split = 1 + spec.num_in  # after `layers`
        adapters[path] = {
            A: dataclasses.replace(
                spec,
                shape=(*spec.shape[:split], cfg.rank),
                axes=(*spec.axes[:split], "lora"),
                init=uniform_columns,
            ),
            B: dataclasses.replace(
                spec,
                shape=(spec.shape[0], cfg.rank, *spec.shape[split:]),
                axes=(spec.axes[0], "lora", *spec.axes[split:]),
                init=zeros,
                num_in=1,
            ),
        }
    return trees.unflatten(adapters)


def uniform_columns(key: Array, spec: ParamSpec) -> Array:
    """Uniform in +-1/sqrt(inputs), column j of the last axis drawn from fold_in(key, j).

    So the first columns do not depend on how many there are, and neither does their distribution:
    an adapter of rank 8 masked to 2 starts as one of rank 2.

    Source: the authors' code, microsoft/LoRA, and Hugging Face PEFT: kaiming_uniform_ with
    a=sqrt(5), whose bound is sqrt(6 / ((1 + a^2) * inputs)) = 1/sqrt(inputs). (The paper's text
    has a Gaussian of a width it does not give.)
    """
    *inputs, rank = spec.shape
    bound = 1 / math.sqrt(math.prod(inputs))

    def column(j):
        return jax.random.uniform(jax.random.fold_in(key, j), inputs, spec.dtype, -bound, bound)

    return jax.vmap(column, out_axes=-1)(jnp.arange(rank))


class AdaptedWeight(struct.PyTreeNode):
    """W + scale * A B, summed in float32 at the moment an operation of JAX takes it as an array.

    base: [N, in..., out...]; a: [N, in..., R]; b: [N, R, out...]; scale: [N]. A scan over layers
    takes the leading axis off all four. dtype: of the sum, after it is made.
    """

    base: Array
    a: Array
    b: Array
    scale: Array
    dtype: Any = struct.field(pytree_node=False, default=jnp.float32)

    def astype(self, dtype) -> "AdaptedWeight":
        return self.replace(dtype=dtype)

    def __jax_array__(self) -> Array:
        # The one contraction that must not be rounded to bfloat16 or TF32: it makes a weight.
        low_rank = jnp.tensordot(self.a, self.b, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (self.base + self.scale * low_rank).astype(self.dtype)


def attach(base: Params, adapters: Params, hypers: Hypers, scaling: Scaling) -> Params:
    """The tree of `base` with an `AdaptedWeight` in each place that has adapters.

    Takes the place of the parameters in the functions of a LanguageModel: the scan over layers
    merges one layer at a time, and the gradient with respect to a whole matrix exists for one
    layer at a time. The backward pass needs each merged matrix again: it keeps them, one copy of
    the targets in the compute dtype, unless model.remat=full makes it merge each anew.

    Args:
      base: weights, not differentiated by who trains adapters. adapters: as `adapter_specs`.
      hypers: "lora_alpha" and, where it is there, "lora_rank" (else R), numbers or traced. Columns
        of A from lora_rank on count as zero, and the scale is that of lora_rank.
    """
    flat = trees.flatten(base)
    by_path: dict[str, dict[str, Array]] = {}
    for path, leaf in trees.flatten(adapters).items():
        target, _, name = path.rpartition(trees.SEPARATOR)
        by_path.setdefault(target, {})[name] = leaf
    for path, pair in by_path.items():
        rank = hypers.get("lora_rank", pair[A].shape[-1])
        scale = scale_of(hypers["lora_alpha"], rank, scaling)
        flat[path] = AdaptedWeight(
            base=flat[path],
            a=mask_columns(pair[A], rank),
            b=pair[B],
            scale=jnp.broadcast_to(scale, pair[A].shape[:1]),
        )
    return trees.unflatten(flat)


def merge(base: Params, adapters: Params, hypers: Hypers, scaling: Scaling) -> Params:
    """`base` with W + scale * A B, in float32, in place of each adapted W; arguments as `attach`.

    The result is an ordinary tree of weights: it costs nothing extra to use.
    """
    return trees.map_with_path(
        lambda _, w: jax.vmap(jnp.asarray)(w) if isinstance(w, AdaptedWeight) else w,
        attach(base, adapters, hypers, scaling),
    )


def scale_of(alpha: Array | float, rank: Array | float, scaling: Scaling) -> Array:
    """f32[], the factor of A B."""
    rank = jnp.asarray(rank, jnp.float32)
    return alpha / (jnp.sqrt(rank) if scaling == "alpha_over_sqrt_r" else rank)


def mask_columns(a: Array, rank: Array | float) -> Array:
    """`a` [..., R] with zeros from column `rank` on."""
    return jnp.where(jnp.arange(a.shape[-1]) < rank, a, 0)


def adapted_loss(loss_fn: Callable, scaling: Scaling) -> Callable:
    """A loss of whole weights as a loss of adapters, for `make_train_step`.

    Args:
      loss_fn: (params, frozen, carry, hypers, batch, key) -> (loss_sum, (Metrics, carry)).
    Returns:
      The same of (adapters, base, carry, hypers, batch, key): gradients reach the adapters alone.
    """

    def adapted(params, frozen, carry, hypers, batch, key):
        weights = attach(frozen, params, hypers, scaling)
        return loss_fn(weights, {}, carry, hypers, batch, key)

    return adapted
