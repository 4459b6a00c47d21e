"""Optimizers built inside the compiled step, so that every number of theirs is traced.

All keep to optax's interface. The clip is first, the learning rate last; its count is in the
state. The structure of the state follows from the config and the specs, never from a number.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from jaxlm.core import trees
from jaxlm.core.arrays import Array
from jaxlm.core.params import ParamSpec
from jaxlm.optim.config import DECOUPLED, OptimConfig
from jaxlm.optim.schedules import learning_rate

Hypers = dict[str, Array]  # f32 scalars, named as by `hyper_values`


def make_tx(cfg: OptimConfig, specs: dict) -> Callable[[Hypers], optax.GradientTransformation]:
    """`make_tx(cfg, specs)(hypers)` is the optimizer for parameters declared by `specs`.

    Only the names in `cfg`, and whether it clips, are read: the numbers come from `hypers`, so
    one compiled step serves a whole sweep and `vmap` over hypers trains a population.
    """
    decays = decay_mask(specs)

    def build(hypers):
        decay = optax.add_decayed_weights(hypers["weight_decay"], decays)
        direction = _direction(cfg.name, hypers, specs)
        steps = (direction, decay) if cfg.name in DECOUPLED else (decay, direction)
        if cfg.clip_norm is not None:
            steps = (clip_by_global_norm(hypers["clip_norm"]), *steps)
        if cfg.name == "muon":
            ratio = optax.scale(hypers["adam_lr"] / hypers["peak_lr"])
            adamw = jax.tree.map(lambda label: label == "adamw", _label_tree(specs))
            steps = (*steps, optax.masked(ratio, adamw))
        rate = optax.scale_by_learning_rate(lambda n: learning_rate(cfg.schedule, n, hypers))
        return optax.chain(*steps, rate)

    return build


def updates_done(opt_state: Any) -> Array:
    """i32[], by which the schedule goes: a step that changed nothing was no update."""
    return optax.tree.get(opt_state, "ScaleByScheduleState").count


def decay_mask(specs: dict) -> dict:
    """True for matrices and lookup tables, False for vectors (gains and biases)."""
    return trees.map_with_path(lambda _, spec: spec.kind != "vector", specs)


def optimizer_labels(specs: dict) -> dict[str, str]:
    """{path: "muon" | "adamw"} under `muon`: matrices go to muon, all but those of a vocabulary.

    Embeddings, the head, gains and biases go to adamw.
    """

    def label(spec):
        return "muon" if spec.kind == "matrix" and "vocab" not in spec.axes else "adamw"

    return {path: label(spec) for path, spec in trees.flatten(specs).items()}


def clip_by_global_norm(max_norm: Array | float) -> optax.GradientTransformation:
    """Multiplies all updates by min(1, max_norm / (norm + 1e-6)), norm their joint L2 norm.

    optax's divides by the norm alone; the constant is torch.nn.utils.clip_grad_norm_'s.
    """

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _direction(name: str, hypers: Hypers, specs: dict) -> optax.GradientTransformation:
    """The update before decay and learning rate."""
    b1, b2, eps, momentum = (hypers[key] for key in ("b1", "b2", "eps", "momentum"))
    match name:
        case "adamw" | "adam":
            return optax.scale_by_adam(b1, b2, eps)
        case "lion":
            return optax.scale_by_lion(b1, b2)
        case "sgd":
            return optax.trace(momentum)
        case "rmsprop":
            return optax.scale_by_rms(momentum, eps)
        case "adagrad":
            return optax.scale_by_rss(eps=eps)
        case "adadelta":
            return optax.scale_by_adadelta(momentum, eps)
        case "muon":
            return optax.partition(
                {"muon": scale_by_muon(momentum, specs), "adamw": optax.scale_by_adam(b1, b2, eps)},
                _label_tree(specs),
            )
    raise ValueError(f"no optimizer is named {name!r}")


def _label_tree(specs: dict) -> dict:
    return trees.unflatten(optimizer_labels(specs))


def scale_by_muon(momentum: Array | float, specs: dict) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised layer by layer, at a root-mean-square of about 0.2.

    A weight is the matrix (its inputs) x (its outputs) that its spec declares: wq [N, D, H, Dh]
    is N matrices D x (H Dh). Each is scaled by 0.2 sqrt(max(inputs, outputs)), which gives it the
    size of an AdamW update, so that one learning rate and one weight decay suit both. (This is
    `consistent_rms=0.2` of optax.contrib.muon, whose default is sqrt(max(1, outputs / inputs)).)

    Source: Jordan et al. 2024, "Muon"; the scale is Liu et al. 2025, "Muon is Scalable for LLM
    Training", eq. 4.
    """
    by_path = trees.flatten(specs)

    def map_with_spec(fn, updates):  # embeddings and the like are masked out of `updates`
        def leaf(keys, x):
            return fn(by_path[trees.SEPARATOR.join(key.key for key in keys)], x)

        return jax.tree_util.tree_map_with_path(leaf, updates)

    def resize(spec, x):
        return 0.2 * math.sqrt(max(spec.fans)) * x

    orthogonalize = optax.contrib.scale_by_muon(
        beta=momentum,
        weight_dimension_numbers=lambda updates: map_with_spec(
            lambda spec, _: muon_dimension_numbers(spec), updates
        ),
    )
    return optax.chain(
        orthogonalize, optax.stateless(lambda updates, _: map_with_spec(resize, updates))
    )


def muon_dimension_numbers(spec: ParamSpec) -> MuonDimensionNumbers:
    """Which axes of a weight are rows (inputs) and columns (outputs); `layers` is neither."""
    first = int(spec.stacked)
    split = first + spec.num_in
    return MuonDimensionNumbers(tuple(range(first, split)), tuple(range(split, len(spec.shape))))
