"""What every job on a run needs: its text, tokenizer, model and checkpoints."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxlm.core import params as params_lib
from jaxlm.core.arrays import Params
from jaxlm.core.config import FLAG, ConfigError
from jaxlm.data.batches import Batch, Split, check_length, evaluation_batches, open_splits
from jaxlm.data.corpus import Corpus, open_corpus
from jaxlm.data.token_file import cached_token_file, open_token_file
from jaxlm.io import checkpoints, frozen
from jaxlm.io.workdir import CONFIG_FILE, load_config
from jaxlm.jobs import Launch, long_texts
from jaxlm.models import kinds, lora
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.models.backends import Choice, choose_attend, choose_linear, choose_unroll
from jaxlm.models.transformer import TransformerConfig
from jaxlm.tokenizers import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from jaxlm.train.config import RunConfig
from jaxlm.train.layouts import Layout, make_layout
from jaxlm.train.program import trained_specs

TOKENIZER_FILE = "tokenizer.json"
EVAL_TOKENS = 8192  # tokens of one validation batch, about: large enough to be fast, small to hold


class Data(NamedTuple):
    """The text of a run as tokens."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Split
    validation: Split


def prepare_data(cfg: RunConfig, tokenizer: Tokenizer | None = None) -> Data:
    """Opens the corpus, trains the tokenizer unless one is given, and encodes the text once.

    Raises:
      ConfigError: the text cannot be read or is too short, or the tokenizer does not fit it.
    """
    corpus = open_corpus(cfg.data)
    if tokenizer is None:
        tokenizer = tokenizer_of(corpus, cfg.tokenizer)
    path = token_file_of(corpus, tokenizer)
    train, validation = open_splits(open_token_file(path, tokenizer.fingerprint), cfg.data)
    for split in (train, validation):
        check_length(split, cfg.model.context_length)
    return Data(corpus, tokenizer, train, validation)


def tokenizer_of(corpus: Corpus, cfg: TokenizerConfig, **options: Any) -> Tokenizer:
    """The tokenizer trained on this text, or read; options: of `train_tokenizer`."""
    texts = itertools.chain.from_iterable(corpus.documents())
    if corpus.num_bytes >= long_texts.LONG_TEXT:
        options["count"] = long_texts.count_pretokens
    return train_tokenizer(cfg, texts, **options)


def token_file_of(corpus: Corpus, tokenizer: Tokenizer) -> pathlib.Path:
    """The token file of this text, built the first time; a long text is encoded by all cores."""
    if corpus.num_bytes < long_texts.LONG_TEXT:
        return cached_token_file(corpus, tokenizer)
    encode = functools.partial(long_texts.encode_documents, tokenizer)
    return cached_token_file(corpus, tokenizer, encode_documents=encode)


def validation_batches(cfg: RunConfig, data: Data, num_parts: int = 1) -> Iterator[Batch]:
    """The whole validation split, in the batches that both training and --job=evaluate use.

    num_parts: their rows are a multiple of it.
    """
    S = cfg.model.context_length
    rows = max(1, EVAL_TOKENS // S)
    return evaluation_batches(
        data.validation,
        batch_size=rows + -rows % num_parts,
        context_length=S,
        mask_documents=cfg.data.mask_documents,
    )


def batch_options(cfg: RunConfig) -> dict[str, Any]:
    """What `batch_at` is told by a config, beside the seed."""
    return {
        "batch_size": cfg.data.batch_size,
        "context_length": cfg.model.context_length,
        "order": cfg.data.order,
        "mask_documents": cfg.data.mask_documents,
    }


def with_vocabulary(cfg: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """`cfg` with the tokenizer's vocabulary size, which a size given there must equal."""
    given = cfg.model.vocab_size
    if given not in (None, tokenizer.vocab_size):
        raise ConfigError(
            f"{FLAG}model.vocab_size={given}: the tokenizer has {tokenizer.vocab_size} ids; "
            "set it to none to follow the tokenizer"
        )
    model = dataclasses.replace(cfg.model, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(cfg, model=model)


class Backends(NamedTuple):
    """options: as the model's `build` takes them. attention: which one, and why; None without."""

    options: dict[str, Any]
    attention: Choice | None

    @property
    def on_one_device(self) -> dict[str, Any]:
        """The options of a program in which nothing is split."""
        return self.options | ({"attend": self.attention.attend} if self.attention else {})

    def __str__(self) -> str:
        return f"{self.attention.name}: {self.attention.why}" if self.attention else "none"


def backends_of(
    cfg: RunConfig,
    layout: Layout | None = None,
    platform: str | None = None,
    choice: Choice | None = None,
) -> Backends:
    """What a run of this config trains and is evaluated with, on this device.

    Args:
      layout: of the devices that it runs on; None: one.
      platform: cpu, gpu or tpu; None: what is here.
      choice: of attention, where it has been made for this model.
    Raises:
      ConfigError: the one it names cannot do what the model needs, or not here.
    """
    segments, name = cfg.data.mask_documents, cfg.train.attention
    if not isinstance(cfg.model, TransformerConfig):
        if name != "auto":
            raise ConfigError(
                f"{FLAG}train.attention={name}: {FLAG}model.kind={cfg.model.kind} has no attention"
            )
        return Backends({"linear": choose_linear(platform)}, None)
    try:
        choice = choice or choose_attend(name, cfg.model, segments=segments, platform=platform)
    except ValueError as error:
        raise ConfigError(f"{FLAG}train.attention={name}: {error}") from None
    attend = choice.attend
    if choice.name == "flash":  # compiled for a TPU, which need not be here; and not split by XLA
        attend = functools.partial(attend, interpret=False)
        if layout is not None and layout.mesh.size > 1:
            attend = layout.split_attend(attend)
    options = {
        "linear": choose_linear(platform),
        "unroll": choose_unroll(cfg.model, platform),
    }
    return Backends({"attend": attend, **options}, choice)


def layout_of(
    cfg: RunConfig, specs: dict[str, Any], devices: Sequence[Any] | None = None
) -> Layout:
    """Where the arrays of a run lie that trains a model with `specs`.

    Args:
      devices: None: those that are here.
    Raises:
      ConfigError: there are too few devices, or something does not divide among them.
    """
    rows = cfg.data.batch_size // cfg.train.num_microbatches
    return make_layout(cfg.mesh, specs, num_rows=rows, devices=devices)


def decoding_model(cfg: ModelConfig) -> LanguageModel:
    """The model to write text with."""
    return kinds.build(cfg.to_decode())


def model_weights(cfg: RunConfig, params: Params, base: Params) -> Params:
    """What the model computes with: `params` themselves, or as adapters merged into `base`."""
    if cfg.lora.rank is None:
        return params
    return _merge(base, params, lora.hyper_values(cfg.lora), scaling=cfg.lora.scaling)


_merge = jax.jit(lora.merge, static_argnames="scaling")


class TrainedRun(NamedTuple):
    """A run's folder, opened for reading.

    params: of the whole model, adapters merged. checkpoint: where they come from.
    settled: the params to evaluate and write text with.
    adapters: as they are in the checkpoint; {} where the run trains every weight.
    corpus: fingerprint of the text they were trained on; None where they were imported.
    """

    cfg: RunConfig
    tokenizer: Tokenizer
    model: LanguageModel
    params: Any
    settled: Any
    step: int
    checkpoint: pathlib.Path
    corpus: str | None
    adapters: Params


def require_workdir(launch: Launch, job: str) -> pathlib.Path:
    """The folder given, if a run is in it; such a job takes no config beside the run's own."""
    if launch.workdir is None:
        raise ConfigError(f"--job={job} needs --workdir, the folder of a run")
    given = ["--config"] if launch.config else [f"{FLAG}{path}" for path in launch.overrides]
    if given:
        raise ConfigError(f"{given[0]}: --job={job} uses the config saved in --workdir")
    path = pathlib.Path(launch.workdir)
    if not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"--workdir={path}: holds no run (no {CONFIG_FILE})")
    return path


def check_choice(flags: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless the flag has one of the values."""
    value = getattr(flags, name)
    if value not in choices:
        raise ConfigError(f"--{name}={value}: expected one of {', '.join(choices)}")


def open_run(
    workdir: pathlib.Path,
    which: str = "newest",
    flag: str = "--workdir",
    layout: Layout | None = None,
) -> TrainedRun:
    """The model of a run with the weights of its newest or best good checkpoint.

    Args:
      layout: where to put them; None: on one device.
    Raises:
      ConfigError: no checkpoint, or one of another tokenizer or shape; it begins with `flag`.
    """
    cfg = load_config(workdir, RunConfig)
    tokenizer = load_tokenizer(workdir / TOKENIZER_FILE)
    find = checkpoints.newest_good if which == "newest" else checkpoints.best
    found = find(workdir)
    if found is None:
        raise ConfigError(f"{flag}={workdir}: holds no {which} checkpoint yet")
    path, manifest = found
    check_tokenizer(manifest, tokenizer, path)
    model = kinds.build(cfg.model)
    abstract = abstract_weights(trained_specs(cfg, model.specs), layout)
    trained = checkpoints.restore(path, abstract, part="params")
    base = restore_frozen(workdir, manifest, model, layout)
    params = model_weights(cfg, trained, base)
    return TrainedRun(
        cfg=cfg,
        tokenizer=tokenizer,
        model=model,
        params=params,
        settled=model.settle(params, restore_carry(cfg, path, model)),
        step=manifest["step"],
        checkpoint=path,
        corpus=manifest["extra"].get("corpus"),
        adapters={} if cfg.lora.rank is None else trained,
    )


def abstract_weights(specs: dict[str, Any], layout: Layout | None) -> Params:
    """Weights to be restored: their shapes, and where each is to lie where there is a layout."""
    return params_lib.abstract_params(specs) if layout is None else layout.weights(specs)


def restore_frozen(
    workdir: pathlib.Path, manifest: dict, model: LanguageModel, layout: Layout | None = None
) -> Params:
    """The base of the adapters in a checkpoint; {} where the run trains every weight."""
    digest = manifest["extra"].get("frozen")
    if digest is None:
        return {}
    return frozen.restore(workdir, digest, abstract_weights(model.specs, layout))


def restore_carry(cfg: RunConfig, path: pathlib.Path, model: LanguageModel) -> Any:
    """What the model of a checkpoint handed on from batch to batch; {} for nothing."""
    abstract = jax.eval_shape(functools.partial(model.init_carry, cfg.data.batch_size))
    return checkpoints.restore(path, abstract, part="carry") if abstract else {}


def check_tokenizer(manifest: dict, tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Raises ConfigError unless the checkpoint was trained with this tokenizer."""
    trained_with = manifest["extra"].get("tokenizer")
    if trained_with != tokenizer.fingerprint:
        raise ConfigError(
            f"{path}: trained with the tokenizer {str(trained_with)[:12]}, but {TOKENIZER_FILE} "
            f"is {tokenizer.fingerprint[:12]}; put back the run's own {TOKENIZER_FILE}"
        )


def check_corpus(
    cfg: RunConfig, corpus: Corpus, trained_on: str | None, path: pathlib.Path
) -> None:
    """Raises ConfigError where the checkpoint was trained here, on another text."""
    if trained_on not in (None, corpus.fingerprint):
        raise ConfigError(
            f"{FLAG}data.path={cfg.data.path}: the text has changed since {path} was trained; "
            "put it back, or start a new run with --config.train.init_from"
        )


def finite_or_none(values: dict[str, Any]) -> dict[str, Any]:
    """`values` for JSON, which has neither NaN nor infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
