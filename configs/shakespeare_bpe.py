"""A wide byte-pair model without norms: BPE of 1,024, 4 layers of width 512, ReLU, head bias.

    python launch.py --config=configs/shakespeare_bpe.py --config.data.path=FILE

Writes samples at three temperatures. Without norms it is the initial scale that keeps the residual
stream in range: output projections start at zero.
"""

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.train.config import RunConfig, TrainConfig


def get_config() -> RunConfig:
    return RunConfig(
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=1024),
        model=TransformerConfig(
            context_length=64,
            num_layers=4,
            d_model=512,
            num_heads=8,
            activation="relu",
            norm_placement="none",
            head_bias=True,
            output_init=0.0,
            scan_unroll=4,
        ),
        data=DataConfig(batch_size=8),
        optim=OptimConfig(
            name="adamw",
            peak_lr=6e-4,
            schedule="warmup_cosine",
            warmup_steps=50,
            min_lr_ratio=0.1,
        ),
        train=TrainConfig(
            num_steps=500,
            eval_every=100,
            save_every=100,
            sample_tokens=100,
            sample_temperatures=(0.5, 0.8, 1.0),
        ),
    )
