"""20 steps on words.txt; what they come to is in tiny_run_losses.json, with the command."""

import pathlib

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config():
    return RunConfig(
        model=TransformerConfig(
            context_length=16,
            num_layers=1,
            d_model=16,
            num_heads=2,
            d_ff=32,
            activation="relu",
            dropout=0.1,
        ),
        data=DataConfig(path=str(pathlib.Path(__file__).with_name("words.txt")), batch_size=4),
        optim=OptimConfig(peak_lr=0.01, schedule="linear", warmup_steps=4),
        train=TrainConfig(
            num_steps=20,
            steps_per_call=4,
            log_every=1,
            eval_every=20,
            save_every=20,
            sample_every=None,
            sample_tokens=0,
        ),
    )
