"""1.2 B parameters for a slice of 256 TPU v5e, 512 rows of 2,048 tokens a step, of your own text.

    python launch.py --job=compile --topology=v5e:16x16 --config=configs/llama_1b.py  # without one
    configs/tpu_pod.sh NAME ZONE --workdir=/shared/a --config=configs/llama_1b.py \\
        --config.data.path=FILE

With remat=full it has room on smaller slices, too; on 256 chips `--plan` finds that none fits and
takes three quarters of the time. What the compiler says of each: configs/SCALE.md.
"""

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.train.config import RunConfig, TrainConfig
from jaxlm.train.layouts import MeshConfig


def get_config() -> RunConfig:
    return RunConfig(
        model=TransformerConfig(
            context_length=2048,
            num_layers=20,
            d_model=2048,
            num_heads=16,
            dtype="bfloat16",
            remat="full",
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=50304),
        data=DataConfig(batch_size=512),
        optim=OptimConfig(peak_lr=3e-4, warmup_steps=500, schedule="warmup_cosine"),
        train=TrainConfig(num_steps=10_000, eval_every=500, eval_batches=64, save_every=500),
        mesh=MeshConfig(fsdp=256),
    )
