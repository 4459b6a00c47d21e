"""--job=import: a run's folder from a Hugging Face folder, a GGUF file or a PEFT adapter."""

import dataclasses
import pathlib
from typing import Any

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.core.params import count_params
from jaxlm.interop import peft_files
from jaxlm.io import checkpoints, frozen, provenance, workdir
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import read_config
from jaxlm.jobs.recorder import PROVENANCE_FILE
from jaxlm.jobs.setup import TOKENIZER_FILE, TrainedRun, with_vocabulary
from jaxlm.jobs.sources import (
    SOURCE_FLAG,
    USAGE_FILE,
    check_same_model,
    config_of_source,
    open_base,
    tokenizer_of_source,
    usage_of_source,
)
from jaxlm.models import kinds
from jaxlm.models.lora import LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import TokenizerConfig, save_tokenizer
from jaxlm.train.config import RunConfig


def main(launch: Launch) -> int:
    """Writes weights, tokenizer and config; everything is read and checked before."""
    if launch.workdir is None:
        raise ConfigError("--job=import needs --workdir, the folder to make")
    folder, source = pathlib.Path(launch.workdir), launch.flags.source
    adapter = pathlib.Path(source) if source and is_adapter(source) else None
    cfg = _config(launch, None if adapter else source)
    given = f"{SOURCE_FLAG}={cfg.train.init_from}"
    base = open_base(cfg, kinds.build(cfg.model))
    check_same_model(base.cfg.model, cfg.model, f"{given}: an import keeps")
    params, adapter_cfg = base.params, LoraConfig()
    if adapter:
        if not isinstance(cfg.model, TransformerConfig):
            raise ConfigError(f"{given}: a {cfg.model.kind}; adapters of PEFT are of transformers")
        adapter_cfg, params = peft_files.load_adapters(adapter, cfg.model)
    path = folder / TOKENIZER_FILE
    tokenizer = TokenizerConfig(kind=base.tokenizer.kind, path=str(path))
    cfg = dataclasses.replace(cfg, lora=adapter_cfg, tokenizer=tokenizer)
    usage = usage_of_source(cfg.train.init_from)
    with workdir.WorkdirLock(folder):
        if (folder / workdir.CONFIG_FILE).exists():
            raise ConfigError(f"--workdir={folder}: holds a run already; choose another folder")
        save_tokenizer(base.tokenizer, path)
        workdir.save_json(folder / USAGE_FILE, usage)
        provenance.save(folder / PROVENANCE_FILE, cfg.seed, goes_on=False)
        _save_weights(folder, base, params, str(adapter or cfg.train.init_from))
        workdir.save_config(folder, cfg)  # last: a folder with it is whole
    print(
        f"imported  {count_params(base.model.specs):,} parameters: {cfg.model.summary}; "
        f"{base.tokenizer.vocab_size} {base.tokenizer.kind}"
    )
    if adapter:
        print(f"adapters  rank {adapter_cfg.rank} on {', '.join(adapter_cfg.targets)}")
    print(f"run       {folder}")
    return 0


def is_adapter(source: str) -> bool:
    """Whether the folder is one that PEFT saved."""
    return (pathlib.Path(source) / peft_files.CONFIG_FILE).is_file()


def _save_weights(folder: pathlib.Path, base: TrainedRun, params: Params, source: str) -> None:
    extra: dict[str, Any] = {"tokenizer": base.tokenizer.fingerprint, "corpus": base.corpus}
    if params is not base.params:
        extra["frozen"] = frozen.save(folder, base.params)
    with checkpoints.Checkpointer(folder) as writer:
        writer.save(0, {"params": params}, extra={**extra, "imported": source})


def _config(launch: Launch, source: str | None) -> RunConfig:
    """The config of the run; its `train.init_from` names the model, or the base of adapters."""
    source = source or launch.overrides.get("train.init_from")
    if launch.config is not None:
        cfg = read_config(launch.config)
        source = source or cfg.train.init_from
    elif source is not None and (cfg := config_of_source(source)) is None:
        raise ConfigError(f"--source={source}: is no Hugging Face folder and no GGUF file")
    if source is None:
        raise ConfigError(
            "--job=import needs --source, a Hugging Face folder or a GGUF file; for an adapter "
            f"also {SOURCE_FLAG}, its base"
        )
    cfg = apply_overrides(cfg, {"train.init_from": source} | launch.overrides)
    if cfg.model.vocab_size is None:
        tokenizer = tokenizer_of_source(cfg)
        assert tokenizer is not None  # since there is a source
        cfg = with_vocabulary(cfg, tokenizer)
    return cfg
