"""The default: a 0.8 M character model of the bundled plays of Shakespeare, on a laptop.

    python launch.py

On two slow CPU cores, with an empty compile cache: 137 s, validation loss 1.71 (the first 8 batches
of the last tenth; `--job=evaluate` takes all of it).
"""

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config() -> RunConfig:
    return RunConfig(
        model=TransformerConfig(
            context_length=128,
            num_layers=4,
            d_model=128,
            num_heads=4,
            activation="relu_squared",
            output_init=0.0,
            scan_unroll=4,
        ),
        data=DataConfig(batch_size=12),
        optim=OptimConfig(
            name="muon",
            peak_lr=0.006,
            adam_lr=0.006,
            momentum=0.9,
            schedule="warmup_stable_decay",
            warmup_steps=0,
            decay_ratio=0.5,
            min_lr_ratio=0.0,
            weight_decay=0.0,
            clip_norm=None,
        ),
        train=TrainConfig(
            num_steps=400,
            eval_every=100,
            eval_batches=8,
            save_every=100,
            sample_every=200,
            log_every=1,
        ),
    )
