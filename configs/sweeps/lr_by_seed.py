"""Which peak learning rate is best, over three seeds: 15 runs, one compiled program.

python launch.py --sweep=configs/sweeps/lr_by_seed.py --workdir=runs/lr
"""

from jaxlm.core.sweep import axis, product
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config() -> RunConfig:
    """A model of 0.1 M parameters, 200 steps: a minute or two for all of them on two cores."""
    return RunConfig(
        model=TransformerConfig(context_length=64, num_layers=2, d_model=64, num_heads=2),
        optim=OptimConfig(warmup_steps=20),
        train=TrainConfig(num_steps=200, eval_every=50, eval_batches=4, save_every=50),
    )


def get_sweep() -> list[dict]:
    return product(
        axis("optim.peak_lr", 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        axis("seed", 0, 1, 2),
    )
