"""--job=export: a run's model as a Hugging Face folder, adapters merged."""

import os
import pathlib
import shutil

from jaxlm.core.config import ConfigError
from jaxlm.interop import pretrained, tokenizer_files
from jaxlm.io import workdir
from jaxlm.jobs import Launch
from jaxlm.jobs.import_model import USAGE_FILE
from jaxlm.jobs.setup import check_choice, open_run, require_workdir


def main(launch: Launch) -> int:
    """Writes the folder whole or not at all."""
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    check_choice(flags, "format", ("safetensors",))
    folder = require_workdir(launch, "export")
    if flags.target is None:
        raise ConfigError("--job=export needs --target, the folder to make")
    target = pathlib.Path(flags.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--target={target}: is there already; choose another folder")
    run = open_run(folder, flags.checkpoint)
    usage_file = folder / USAGE_FILE
    usage = workdir.load_json(usage_file) if usage_file.exists() else {}
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        pretrained.save_weights(unfinished, run.cfg.model, run.params)
        if run.tokenizer.kind == "characters":
            print("left out  the tokenizer: transformers has none of characters")
        else:
            tokenizer_files.write_tokenizer(unfinished, run.tokenizer, usage)
        os.replace(unfinished, target)
    except OSError as error:
        raise ConfigError(f"--target={target}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"exported  step {run.step} of {folder}")
    print(f"folder    {target}")
    return 0
