"""--job=sample: text from a run's model."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.params import count_params
from jaxlm.decode.beam import beam_search
from jaxlm.decode.generate import generate
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.sample_flags import check_flags, sampling_of, stop_ids_of
from jaxlm.jobs.setup import decoding_model, open_run, require_workdir
from jaxlm.models.api import LanguageModel

LARGE = 10_000_000  # parameters from which on a faster token is worth a longer compilation


class Text(NamedTuple):
    """What was written after the prompt: ids i32[n], and what is to be said of it."""

    ids: np.ndarray
    about: str = ""


def main(launch: Launch) -> int:
    flags = launch.flags
    check_flags(flags)
    sampling = sampling_of(flags)
    folder = require_workdir(launch, "sample")
    compile_cache.enable()
    run = open_run(folder, flags.checkpoint)
    try:
        prompt = run.tokenizer.encode(flags.prompt, allow_special=True)
    except ConfigError as error:
        raise ConfigError(f"--prompt: {error}") from None
    model = decoding_model(run.cfg.model)
    params = weights_to_read(model, run.settled)
    limits = {
        "num_tokens": flags.num_tokens,
        "stop_ids": stop_ids_of(flags.stop, folder, run.tokenizer),
        "max_length": run.cfg.model.max_positions,
    }
    if flags.beam_width is not None:
        texts = searched(flags, model, params, prompt, limits)
    else:
        texts = drawn(flags, model, params, prompt, limits | sampling)
    for i, text in enumerate(texts):
        if flags.num_samples > 1:
            print(f"{'' if i == 0 else chr(10)}--- sample {i + 1}{text.about}")
        print(flags.prompt + run.tokenizer.decode(text.ids))
    return 0


def drawn(
    flags: Any, model: LanguageModel, params: Params, prompt: np.ndarray, options: dict[str, Any]
) -> list[Text]:
    key = jax.random.key(flags.seed)
    out = generate(model, params, [prompt] * flags.num_samples, key, **options)
    return [Text(ids[:n]) for ids, n in zip(out.tokens, out.lengths, strict=True)]


def searched(
    flags: Any, model: LanguageModel, params: Params, prompt: np.ndarray, options: dict[str, Any]
) -> list[Text]:
    """The best of a beam, each with its score."""
    penalty = flags.length_penalty
    out = beam_search(
        model, params, [prompt], width=flags.beam_width, length_penalty=penalty, **options
    )
    found = zip(out.tokens[0], out.lengths[0], out.scores[0], strict=True)
    texts = [Text(ids[:n], f", score {score:.4f}") for ids, n, score in found if score > -np.inf]
    return texts[: flags.num_samples]


def weights_to_read(model: LanguageModel, params: Params) -> Params:
    """Those of a large model in the form that a token reads fastest."""
    if count_params(model.specs) < LARGE:
        return params
    return jax.jit(model.decoding_params)(params)
