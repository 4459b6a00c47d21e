"""--job=sample: text from a run's model."""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.core.arrays import Params
from jaxlm.core.config import ConfigError
from jaxlm.core.params import count_params
from jaxlm.decode.beam import beam_search
from jaxlm.decode.constrained import generate_matching
from jaxlm.decode.generate import generate
from jaxlm.decode.grammars import Matcher
from jaxlm.decode.speculative import speculate
from jaxlm.interop import pretrained
from jaxlm.io import compile_cache
from jaxlm.jobs import Launch
from jaxlm.jobs.sample_flags import check_flags, matcher_of, stop_ids_of
from jaxlm.jobs.sampling_flags import sampling_of
from jaxlm.jobs.setup import TrainedRun, decoding_model, open_run, require_workdir
from jaxlm.jobs.sources import config_of_source, prompt_ids, usage_of_source
from jaxlm.models import transformer
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.models.transformer import TransformerConfig

LARGE = 10_000_000  # parameters from which on a faster token is worth a longer compilation


class Text(NamedTuple):
    """What was written after the prompt: ids i32[n], what is to be said of it, and whether it was
    to match something and does not.
    """

    ids: np.ndarray
    about: str = ""
    broken_off: bool = False


def main(launch: Launch) -> int:
    flags = launch.flags
    check_flags(flags)
    sampling = sampling_of(flags)
    folder = require_workdir(launch, "sample")
    compile_cache.enable()
    run = open_run(folder, flags.checkpoint)
    prompt = prompt_ids(flags.prompt, run.tokenizer, usage_of_source(str(folder)))
    matcher = matcher_of(flags, run.tokenizer)
    model = decoding_model(run.cfg.model)
    params = weights_to_read(model, run.settled)
    limits = {
        "num_tokens": flags.num_tokens,
        "stop_ids": stop_ids_of(flags.stop, folder, run.tokenizer),
        "max_length": run.cfg.model.max_positions,
    }
    if flags.beam_width is not None:
        texts = searched(flags, model, params, prompt, limits)
    elif matcher is not None:
        texts = matching(flags, model, params, prompt, matcher, limits | sampling)
    elif flags.draft is not None or flags.draft_layers is not None:
        texts = drafted(flags, run, model, params, prompt, limits | sampling)
    else:
        texts = drawn(flags, model, params, prompt, limits | sampling)
    for i, text in enumerate(texts):
        if flags.num_samples > 1:
            print(f"{'' if i == 0 else chr(10)}--- sample {i + 1}{text.about}")
        print(flags.prompt + run.tokenizer.decode(text.ids))
    broken = sum(text.broken_off for text in texts)
    if broken:
        print(f"{broken} of {len(texts)} broken off before it matched", file=sys.stderr)
    return 1 if broken else 0


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


def matching(
    flags: Any,
    model: LanguageModel,
    params: Params,
    prompt: np.ndarray,
    matcher: Matcher,
    options: dict[str, Any],
) -> list[Text]:
    """Drawn as `drawn` does, among the tokens that may follow."""
    prompts, key = [prompt] * flags.num_samples, jax.random.key(flags.seed)
    out = generate_matching(model, params, prompts, key, matcher, **options)
    return [
        Text(ids[:n], broken_off=not matches)
        for ids, n, matches in zip(out.tokens, out.lengths, out.matches, strict=True)
    ]


def drafted(
    flags: Any,
    run: TrainedRun,
    model: LanguageModel,
    params: Params,
    prompt: np.ndarray,
    options: dict[str, Any],
) -> list[Text]:
    """Drawn as `drawn` does, the tokens proposed by a draft; says what that was worth."""
    draft_cfg, draft_params = open_draft(flags, run)
    draft = decoding_model(draft_cfg)
    limits = [n for n in (options["max_length"], draft_cfg.max_positions) if n is not None]
    options["max_length"] = min(limits, default=None)
    out = speculate(
        model,
        params,
        draft,
        weights_to_read(draft, draft_params),
        [prompt] * flags.num_samples,
        jax.random.key(flags.seed),
        num_drafted=flags.draft_tokens,
        **options,
    )
    print(
        f"{out.acceptance_rate:.0%} of the drafted tokens kept, {out.tokens_per_call:.2f} tokens "
        "for each call of the model",
        file=sys.stderr,
    )
    return [Text(ids[:n]) for ids, n in zip(out.tokens, out.lengths, strict=True)]


def open_draft(flags: Any, run: TrainedRun) -> tuple[ModelConfig, Params]:
    """The model that drafts: another run, files of another library, or some layers of this one."""
    if (layers := flags.draft_layers) is not None:
        if not isinstance(run.cfg.model, TransformerConfig):
            raise ConfigError(
                f"--draft_layers={layers}: the model is of kind {run.cfg.model.kind}; only a "
                "transformer has layers that can be left out"
            )
        if layers >= run.cfg.model.num_layers:
            raise ConfigError(
                f"--draft_layers={layers}: the model has {run.cfg.model.num_layers} layers; a "
                "draft has fewer"
            )
        params, cfg = transformer.first_layers(run.params, run.cfg.model, layers)
        return cfg, params
    found = config_of_source(flags.draft)
    if found is None:
        raise ConfigError(f"--draft={flags.draft}: holds no run, and no model of another library")
    if pretrained.is_pretrained(flags.draft):
        tokenizer = pretrained.load_tokenizer(flags.draft)
        cfg, params = pretrained.load_weights(flags.draft)
    else:
        opened = open_run(pathlib.Path(flags.draft), flag="--draft")
        tokenizer, cfg, params = opened.tokenizer, opened.cfg.model, opened.settled
    if tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise ConfigError(
            f"--draft={flags.draft}: has another tokenizer ({tokenizer.vocab_size} ids) than "
            f"--workdir ({run.tokenizer.vocab_size}); a draft needs the same ids"
        )
    return cfg, params


def weights_to_read(model: LanguageModel, params: Params) -> Params:
    """Those of a large model in the form that a token reads fastest."""
    if count_params(model.specs) < LARGE:
        return params
    return jax.jit(model.decoding_params)(params)
