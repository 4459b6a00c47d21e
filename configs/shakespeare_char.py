"""A character model of 0.8 M parameters, of one text file; about a minute on two cores.

    python launch.py --config=configs/shakespeare_char.py --config.data.path=tinyshakespeare.txt

The size of the well-known small CPU recipe (4 layers, width 128, 4 heads, context 64), with what
makes it learn faster: Muon for the matrices, output projections that start at zero, squared ReLU,
and a learning rate that falls over the last two thirds.
"""

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config() -> RunConfig:
    return RunConfig(
        model=TransformerConfig(
            context_length=64,
            num_layers=4,
            d_model=128,
            num_heads=4,
            activation="relu_squared",
            output_init=0.0,
            scan_unroll=4,
        ),
        data=DataConfig(batch_size=16),
        optim=OptimConfig(
            name="muon",
            peak_lr=0.008,
            adam_lr=0.006,
            momentum=0.9,
            schedule="warmup_stable_decay",
            warmup_steps=0,
            decay_ratio=0.67,
            min_lr_ratio=0.0,
            weight_decay=0.0,
            clip_norm=None,
        ),
        train=TrainConfig(num_steps=220, eval_every=110, save_every=220, log_every=1),
    )
