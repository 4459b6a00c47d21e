"""--job=sample: text from a run's model."""

import jax
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.params import count_params
from jaxlm.decode.generate import make_generator
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.setup import (
    check_choice,
    decoding_model,
    open_run,
    require_workdir,
)
from jaxlm.models.api import LanguageModel

LARGE = 10_000_000  # parameters from which on a faster token is worth a longer compilation


def main(launch: Launch) -> int:
    flags = launch.flags
    check_choice(flags, "checkpoint", ("newest", "best"))
    for name in ("top_p", "min_p"):
        share = getattr(flags, name)
        if share is not None and not 0 < share <= 1:
            raise ConfigError(f"--{name}={share}: expected a number in (0, 1]")
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
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        min_p=flags.min_p,
    )
    for i, (tokens, length) in enumerate(zip(np.asarray(out.tokens), out.lengths, strict=True)):
        if flags.num_samples > 1:
            print(f"{'' if i == 0 else chr(10)}--- sample {i + 1}")
        print(flags.prompt + run.tokenizer.decode(tokens[: int(length)]))
    return 0


def weights_to_read(model: LanguageModel, params: Params) -> Params:
    """Those of a large model in the form that a token reads fastest."""
    if count_params(model.specs) < LARGE:
        return params
    return jax.jit(model.decoding_params)(params)
