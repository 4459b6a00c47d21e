"""The model that studies of adaptation start from; needs no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A transformer trained on the bundled plays, read as bytes, with Muon."""

    num_layers: int = 2
    d_model: int = 64
    num_heads: int = 2
    context_length: int = 64  # also of the adaptation
    batch_size: int = 16
    num_steps: int = 600
    eval_every: int = 100
    peak_lr: float = 1e-2
    seed: int = 0

    def __post_init__(self):
        if self.eval_every < 1 or self.num_steps < 1 or self.num_steps % self.eval_every:
            raise ValueError(
                f"num_steps={self.num_steps} must be a multiple of eval_every={self.eval_every}"
            )
