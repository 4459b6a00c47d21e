"""--job=export: a run's model as a Hugging Face folder, or its adapters as a folder of PEFT."""

import os
import pathlib
import shutil

from jaxlm.core.config import ConfigError
from jaxlm.interop import peft_files, pretrained
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import TrainedRun, check_choice, open_run, require_workdir
from jaxlm.jobs.sources import saved_usage
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import hugging_face


def main(launch: Launch) -> int:
    """Writes the folder whole or not at all."""
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    check_choice(flags, "format", ("safetensors", "peft"))
    folder = require_workdir(launch, "export")
    if flags.target is None:
        raise ConfigError("--job=export needs --target, the folder to make")
    target = pathlib.Path(flags.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--target={target}: is there already; choose another folder")
    run = open_run(folder, flags.checkpoint)
    model = run.cfg.model
    if not isinstance(model, TransformerConfig):
        raise ConfigError(
            f"--workdir={folder}: model.kind={model.kind}: only kind=transformer can be exported"
        )
    if flags.format == "peft" and not run.adapters:
        raise ConfigError(f"--format=peft: {folder} has no adapters; leave it out for the model")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        if flags.format == "peft":
            base, cfg = run.cfg.train.init_from, run.cfg
            peft_files.save_adapters(unfinished, model, cfg.lora, run.adapters, base)
        else:
            _write_model(unfinished, folder, run, model)
        os.replace(unfinished, target)
    except OSError as error:
        raise ConfigError(f"--target={target}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"exported  step {run.step} of {folder}")
    print(f"folder    {target}")
    return 0


def _write_model(
    target: pathlib.Path, folder: pathlib.Path, run: TrainedRun, model: TransformerConfig
) -> None:
    usage, ids = saved_usage(folder), run.tokenizer.special_ids
    named = {name: ids[usage[name]] for name in pretrained.SPECIAL if usage.get(name) in ids}
    pretrained.save_weights(target, model, run.params, special_ids=named)
    if run.tokenizer.kind == "characters":
        print("left out  the tokenizer: transformers has none of characters")
    else:
        hugging_face.write_tokenizer(target, run.tokenizer, usage)
