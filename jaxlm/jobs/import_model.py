"""--job=import: a run's folder from a Hugging Face folder or a GGUF file, for all other jobs."""

import dataclasses
import pathlib

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.core.params import count_params
from jaxlm.interop import pretrained
from jaxlm.io import checkpoints, provenance, workdir
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import read_config
from jaxlm.jobs.recorder import PROVENANCE_FILE
from jaxlm.jobs.setup import TOKENIZER_FILE
from jaxlm.jobs.sources import SOURCE_FLAG, check_same_model, config_of_source, open_base
from jaxlm.models import transformer
from jaxlm.tokenizers import TokenizerConfig, save_tokenizer
from jaxlm.train.config import RunConfig

USAGE_FILE = "tokenizer_config.json"  # chat template and names of special tokens, as the model's


def main(launch: Launch) -> int:
    """Writes weights, tokenizer and config; everything is read and checked before."""
    if launch.workdir is None:
        raise ConfigError("--job=import needs --workdir, the folder to make")
    folder = pathlib.Path(launch.workdir)
    cfg = _config(launch)
    source = cfg.train.init_from
    base = open_base(cfg, transformer.build(cfg.model))
    check_same_model(base.cfg.model, cfg.model, f"{SOURCE_FLAG}={source}: an import keeps")
    path = folder / TOKENIZER_FILE
    cfg = dataclasses.replace(cfg, tokenizer=TokenizerConfig(kind="bpe", path=str(path)))
    _, usage = pretrained.load_tokenizer(source, cfg.model.vocab_size)
    with workdir.WorkdirLock(folder):
        if (folder / workdir.CONFIG_FILE).exists():
            raise ConfigError(f"--workdir={folder}: holds a run already; choose another folder")
        save_tokenizer(base.tokenizer, path)
        workdir.save_json(folder / USAGE_FILE, usage)
        workdir.save_json(folder / PROVENANCE_FILE, provenance.collect(cfg.seed))
        extra = {"tokenizer": base.tokenizer.fingerprint, "corpus": None, "imported": source}
        with checkpoints.Checkpointer(folder) as writer:
            writer.save(0, {"params": base.params}, extra=extra)
        workdir.save_config(folder, cfg)  # last: a folder with it is whole
    sizes = cfg.model.sizes
    print(
        f"imported  {count_params(base.model.specs):,} parameters: {sizes.N} layers, width "
        f"{sizes.D}, {sizes.H} heads, context {cfg.model.context_length}; "
        f"{base.tokenizer.vocab_size} tokens, {base.tokenizer.content['pattern']}"
    )
    print(f"run       {folder}")
    return 0


def _config(launch: Launch) -> RunConfig:
    source = launch.flags.source
    given = {} if source is None else {"train.init_from": source}
    if launch.config is not None:
        cfg = apply_overrides(read_config(launch.config), given | launch.overrides)
    elif source is None:
        raise ConfigError("--job=import needs --source, a Hugging Face folder or a GGUF file")
    else:
        _check_source(source, "--source")
        cfg = apply_overrides(config_of_source(source), launch.overrides)
    _check_source(cfg.train.init_from, SOURCE_FLAG)
    if cfg.model.vocab_size is None:
        rows = pretrained.load_config(cfg.train.init_from).vocab_size
        cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=rows))
    return cfg


def _check_source(source: str | None, flag: str) -> None:
    if source is None or not pretrained.is_pretrained(source):
        raise ConfigError(f"{flag}={source}: is no Hugging Face folder and no GGUF file")
