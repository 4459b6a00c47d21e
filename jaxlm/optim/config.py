"""What an optimizer and its schedule are set by, and the numbers that a step is given."""

import dataclasses
from typing import Literal

from jaxlm.core.config import FLAG, ConfigError, check_choices

Optimizer = Literal["adamw", "adam", "lion", "muon", "sgd", "adagrad", "adadelta", "rmsprop"]
Schedule = Literal[
    "warmup_cosine",
    "warmup_inverse_sqrt",
    "warmup_inverse_sqrt_original",
    "warmup_stable_decay",
    "linear",
    "constant",
]

# Of these the decay is added to the update; the others add it to the gradient.
DECOUPLED = ("adamw", "lion", "muon")

# What None stands for where the customary value depends on the optimizer.
DEFAULT_WEIGHT_DECAY = dict.fromkeys(DECOUPLED, 0.1)  # else 0
DEFAULT_B2 = {"lion": 0.99}  # else 0.95
DEFAULT_EPS = {"adagrad": 1e-7, "adadelta": 1e-6}  # else 1e-8
DEFAULT_MOMENTUM = {"muon": 0.95}  # else 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its learning-rate schedule and the gradient clip.

    name: muon orthogonalises the matrices and gives embeddings, head, gains and biases to adamw.
    peak_lr: the highest learning rate; the constant one for `constant`.
    schedule: see `jaxlm.optim.schedules`; n, the number of updates done, starts at 0.
    warmup_steps: updates until the peak. `constant` has no warmup (warmup_stable_decay with
      decay_steps=0 is a constant rate after one).
    min_lr_ratio: the last learning rate as a share of the peak, for the cosine, stable-decay and
      linear schedules.
    decay_steps: length of the final decay of warmup_stable_decay; None is decay_ratio of the run.
    decay_ratio: share of the run, read where decay_steps is None.
    lr_scale: factor of warmup_inverse_sqrt_original, whose peak (d_model * warmup_steps)^-0.5
      follows from the model; it does not read peak_lr.
    adam_lr: muon only: the peak rate of what adamw trains; None is peak_lr.
    weight_decay: adamw, lion, muon: decoupled and scaled by the learning rate, None is 0.1. The
      others: L2, added to the clipped gradient, None is 0. Gains and biases never decay.
    b1: first-moment decay of adamw, adam and lion, and of muon's adamw.
    b2: second-moment decay of the same; None is 0.95, for lion 0.99.
    eps: added to the root of adamw and adam, under the root of rmsprop, adagrad and adadelta;
      None is 1e-8, adagrad 1e-7, adadelta 1e-6.
    momentum: sgd and muon: momentum; rmsprop and adadelta: decay of the squared averages. None is
      0.9, for muon 0.95.
    clip_norm: greatest global L2 norm of the gradient; None is no clip.
    """

    name: Optimizer = "adamw"
    peak_lr: float = 1e-3
    schedule: Schedule = "warmup_cosine"
    warmup_steps: int = 100
    min_lr_ratio: float = 0.1
    decay_steps: int | None = None
    decay_ratio: float = 0.2
    lr_scale: float = 1.0
    adam_lr: float | None = None
    weight_decay: float | None = None
    b1: float = 0.9
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    clip_norm: float | None = 1.0

    def __post_init__(self):
        check_choices(self)
        for name in ("peak_lr", "lr_scale", "adam_lr", "eps", "clip_norm"):
            _require(getattr(self, name), name, "greater than 0", lambda x: x > 0)
        for name in ("warmup_steps", "decay_steps", "weight_decay"):
            _require(getattr(self, name), name, "at least 0", lambda x: x >= 0)
        for name in ("b1", "b2", "momentum"):
            _require(getattr(self, name), name, "in [0, 1)", lambda x: 0 <= x < 1)
        for name in ("min_lr_ratio", "decay_ratio"):
            _require(getattr(self, name), name, "in [0, 1]", lambda x: 0 <= x <= 1)


def _require(value, name, expected, holds):
    if value is not None and not holds(value):
        raise ConfigError(f"{FLAG}optim.{name}={value}: expected a number {expected}")


def hyper_values(cfg: OptimConfig, *, num_steps: int, d_model: int) -> dict[str, float]:
    """The numbers of `cfg`, to be traced: the same names for every optimizer and schedule.

    `clip_norm` is missing where the gradient is not clipped, which is a choice of structure.

    Args:
      num_steps: updates in the whole run; the decaying schedules end there.
      d_model: read by warmup_inverse_sqrt_original.
    Raises:
      ConfigError: the run is shorter than the schedule's warmup and decay.
    """
    decay_steps = int(cfg.decay_ratio * num_steps) if cfg.decay_steps is None else cfg.decay_steps
    if cfg.schedule in ("warmup_cosine", "warmup_stable_decay", "linear"):
        tail = decay_steps if cfg.schedule == "warmup_stable_decay" else 0
        if cfg.warmup_steps + tail > num_steps:
            name, total = "warmup_steps", str(cfg.warmup_steps)
            if tail > cfg.warmup_steps:
                name, total = "decay_steps", f"{tail}, with warmup_steps={cfg.warmup_steps}"
            elif tail:
                total += f", with decay_steps={tail}"
            raise ConfigError(
                f"{FLAG}optim.{name}={total}: more than the {num_steps} steps of the run;"
                " lower it or raise the number of steps"
            )

    def or_default(value, defaults, usual):
        return defaults.get(cfg.name, usual) if value is None else value

    values = {
        "peak_lr": cfg.peak_lr,
        "adam_lr": cfg.peak_lr if cfg.adam_lr is None else cfg.adam_lr,
        "min_lr": cfg.min_lr_ratio * cfg.peak_lr,
        "lr_scale": cfg.lr_scale,
        "warmup_steps": cfg.warmup_steps,
        "decay_steps": decay_steps,
        "total_steps": num_steps,
        "d_model": d_model,
        "weight_decay": or_default(cfg.weight_decay, DEFAULT_WEIGHT_DECAY, 0.0),
        "b1": cfg.b1,
        "b2": or_default(cfg.b2, DEFAULT_B2, 0.95),
        "eps": or_default(cfg.eps, DEFAULT_EPS, 1e-8),
        "momentum": or_default(cfg.momentum, DEFAULT_MOMENTUM, 0.9),
    }
    if cfg.clip_norm is not None:
        values["clip_norm"] = cfg.clip_norm
    return {name: float(value) for name, value in values.items()}
