"""--job=sample: text from a run's model."""

import pathlib
from typing import Any

import jax

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.params import count_params
from jaxlm.decode.generate import make_generator
from jaxlm.io import compile_cache
from jaxlm.io.workdir import load_json
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import (
    check_choice,
    decoding_model,
    open_run,
    require_workdir,
)
from jaxlm.jobs.sources import USAGE_FILE
from jaxlm.models.api import LanguageModel
from jaxlm.tokenizers import Tokenizer

LARGE = 10_000_000  # parameters from which on a faster token is worth a longer compilation


def main(launch: Launch) -> int:
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    sampling = sampling_of(flags)
    if not flags.prompt:
        raise ConfigError("--prompt=: expected at least one character to go on from")
    folder = require_workdir(launch, "sample")
    compile_cache.enable()
    run = open_run(folder, flags.checkpoint)
    try:
        prompt = run.tokenizer.encode(flags.prompt, allow_special=True)
    except ConfigError as error:
        raise ConfigError(f"--prompt: {error}") from None
    model = decoding_model(run.cfg.model)
    generate = make_generator(model, max_length=run.cfg.model.max_positions)
    out = generate(
        weights_to_read(model, run.settled),
        [prompt] * flags.num_samples,
        jax.random.key(flags.seed),
        num_tokens=flags.num_tokens,
        stop_ids=stop_ids_of(flags.stop, folder, run.tokenizer),
        **sampling,
    )
    for i, (tokens, length) in enumerate(zip(out.tokens, out.lengths, strict=True)):
        if flags.num_samples > 1:
            print(f"{'' if i == 0 else chr(10)}--- sample {i + 1}")
        print(flags.prompt + run.tokenizer.decode(tokens[: int(length)]))
    return 0


def sampling_of(flags: Any) -> dict[str, Any]:
    """What the flags say of how a token is drawn, as `generate` takes it."""
    for name in ("top_p", "min_p"):
        share = getattr(flags, name)
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"--{name}={share}: expected a number in (0, 1]")
    numbers = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = {name: getattr(flags, name) for name in numbers}
    if flags.logit_bias:
        sampling["logit_bias"] = dict(map(_id_and_bias, flags.logit_bias))
    return sampling


def _id_and_bias(item: str) -> tuple[int, float]:
    try:
        id, bias = item.split(":")
        return int(id), float(bias)
    except ValueError:
        raise ConfigError(
            f"--logit_bias={item}: expected ID:BIAS, several joined by commas, such as 198:-inf"
        ) from None


def stop_ids_of(stop: str | None, folder: pathlib.Path, tokenizer: Tokenizer) -> list[int]:
    """The token at which a text ends: that of --stop, else the one that an imported run names."""
    if stop is None:
        path = folder / USAGE_FILE
        stop = load_json(path).get("eos_token", "none") if path.is_file() else "none"
    if stop == "none":
        return []
    try:
        ids = tokenizer.encode(stop, allow_special=True)
    except ConfigError as error:
        raise ConfigError(f"--stop: {error}") from None
    if len(ids) != 1:
        raise ConfigError(f"--stop={stop}: is {len(ids)} tokens; expected a text that is one")
    return ids.tolist()


def weights_to_read(model: LanguageModel, params: Params) -> Params:
    """Those of a large model in the form that a token reads fastest."""
    if count_params(model.specs) < LARGE:
        return params
    return jax.jit(model.decoding_params)(params)
