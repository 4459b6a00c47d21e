"""Level 6: one file a job; a job may print, start processes and write files.

A job is a module with `main(launch) -> exit code`. It is imported when it is run, so that
`--help` needs neither JAX nor a device.
"""

import importlib
from typing import Any, NamedTuple

from jaxlm.core.config import ConfigError

JOBS = {
    "train": "train a model on text, or go on with a run",
    "evaluate": "the validation loss of a run, from its checkpoint",
    "inspect": "what is in a run's checkpoint: arrays, shapes, sizes, hashes",
    "sample": "text from a run's model",
    "chat": "a conversation with a run's model, by its own chat template",
    "explain": "a page on a text: loss by token, attention, what each layer would predict",
    "tokenizer": "train a tokenizer on text, save it, and show what it makes of the text",
    "fields": "every field of a config: its value, what it may be, and what it does",
    "prove_causal": "whether any prediction of a config's model sees what it must not, by autodiff",
    "verify_resume": "whether a run killed at random moments ends as the unbroken one, bit for bit",
    "check_layouts": "a config's step on 8 devices, under every layout, against one device",
    "compile": "the training step compiled for absent hardware: does it fit, how fast can it be",
    "compare": "runs side by side, and the fields in which their configs differ",
    "import": "a run's folder from a Hugging Face or PEFT folder, or a GGUF file",
    "export": "a Hugging Face folder from a run, or a PEFT folder of its adapters",
    "doctor": "what this machine offers, what is wrong, and what puts it right",
}

MODULES = {"import": "import_model"}  # where a job cannot be the name of its module
BY_FLAG = {"experiment": "study", "sweep": "sweep"}  # jobs with a flag of their own

# Flags that only some jobs read, "submit" being that of --launcher.
READ_BY = {
    "prompt": ("sample", "explain"),
    **dict.fromkeys(
        (
            *("num_tokens", "temperature", "top_k", "top_p", "min_p"),
            *("repetition_penalty", "logit_bias"),
        ),
        ("chat", "sample"),
    ),
    **dict.fromkeys(("system", "context"), ("chat",)),
    **dict.fromkeys(
        (
            *("num_samples", "stop", "beam_width", "length_penalty"),
            *("draft", "draft_layers", "draft_tokens", "regex", "json_schema"),
        ),
        ("sample",),
    ),
    "checkpoint": ("chat", "evaluate", "explain", "export", "inspect", "sample"),
    "output": ("compare", "evaluate", "inspect"),
    "runs": ("compare",),
    "source": ("import",),
    "target": ("explain", "export"),
    "format": ("export",),
    **dict.fromkeys(("topology", "plan"), ("compile",)),
    "shrink": ("check_layouts",),
    "seed": ("chat", "sample", "verify_resume"),
    **dict.fromkeys(("kills", "steps"), ("verify_resume",)),
    **dict.fromkeys(("coordinator", "num_processes", "process_id"), ("train",)),
    **dict.fromkeys(("partition", "minutes", "gpus", "cpus", "nodes", "array"), ("submit",)),
}


class Launch(NamedTuple):
    """What the command line asked for.

    config: path of a config file, .py or .json, or None. overrides: {"model.num_layers": "8"}.
    workdir: the folder of a run, or None. default_config: used where neither a config nor a run is
    given. flags: the other flags, by attribute.
    """

    config: str | None
    overrides: dict[str, str]
    workdir: str | None
    default_config: str
    flags: Any


def check_flags(flags: Any, job: str) -> None:
    """Raises ConfigError for a flag that is given and that neither `job` nor a launcher reads."""
    reads = {job, "submit"} if flags.launcher is not None else {job}
    for name, readers in READ_BY.items():
        if flags[name].present and not reads.intersection(readers):
            use = " or ".join("--launcher" if r == "submit" else f"--job={r}" for r in readers)
            raise ConfigError(f"--{name}={flags[name].value}: only {use} reads it; leave it out")


def field_meant(flag: str) -> str:
    """What to say of a flag that there is not, where it is the name of a config's field; or ""."""
    return importlib.import_module("jaxlm.jobs.configs").field_meant(flag)


def run(name: str, launch: Launch) -> int:
    """Runs a job of `JOBS` or `BY_FLAG` by name; returns the exit code of the process."""
    return importlib.import_module(f"jaxlm.jobs.{MODULES.get(name, name)}").main(launch) or 0
