"""What a run starts from: the weights of another run, or of a model of another library."""

import pathlib
from typing import Any

import jax
import numpy as np

from jaxlm.core import config as config_lib
from jaxlm.core import params as params_lib
from jaxlm.core.config import FLAG, ConfigError
from jaxlm.core.json_forms import count
from jaxlm.interop import pretrained
from jaxlm.io import workdir
from jaxlm.jobs.setup import TOKENIZER_FILE, TrainedRun, open_run
from jaxlm.models import kinds
from jaxlm.models.api import LanguageModel
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.tokenizers import Tokenizer, TokenizerConfig, load_tokenizer
from jaxlm.tokenizers.hugging_face import USAGE
from jaxlm.train.config import RunConfig, TrainConfig
from jaxlm.train.layouts import Layout

USAGE_FILE = "tokenizer_config.json"  # chat template and names of special tokens, as the source's
_USAGE = {**dict.fromkeys(USAGE, (str, None)), "model_max_length": (count, None)}
SOURCE_FLAG = f"{FLAG}train.init_from"

# Fields of a model that may differ from those of the base its adapters are added to: none of them
# changes what the base computes, or it shows in the shapes of the weights.
FREE_OF_BASE = (
    *("context_length", "dropout", "dtype", "remat", "scan_unroll"),
    *("init_scale", "output_init"),
    *("num_kv_heads", "head_dim", "d_ff"),
)


def config_of_source(source: str) -> RunConfig | None:
    """The config to begin with where `source` is named and no config is; None: there is nothing."""
    if pretrained.is_pretrained(source):
        model = pretrained.load_config(source)
        try:
            tokenizer = TokenizerConfig(kind="bpe", vocab_size=model.vocab_size)
            train = TrainConfig(init_from=source)
            return RunConfig(model=model, tokenizer=tokenizer, train=train)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
    if (pathlib.Path(source) / workdir.CONFIG_FILE).is_file():
        return workdir.load_config(source, RunConfig)
    return None


def tokenizer_of_source(cfg: RunConfig) -> Tokenizer | None:
    """That of the weights that are started from; None where a run starts from none."""
    source = cfg.train.init_from
    if source is None:
        return None
    _require(source)
    if pretrained.is_pretrained(source):
        return pretrained.load_tokenizer(source)
    return load_tokenizer(pathlib.Path(source) / TOKENIZER_FILE)


def usage_of_source(source: str | None) -> dict[str, Any]:
    """How the source's tokenizer is used, see `pretrained.load_usage`; {} where it does not say."""
    if source is None:
        return {}
    if pretrained.is_pretrained(source):
        return pretrained.load_usage(source)
    return saved_usage(pathlib.Path(source))


def saved_usage(folder: pathlib.Path) -> dict[str, Any]:
    """The same of a run's own folder."""
    path = folder / USAGE_FILE
    return workdir.load_json(path, _USAGE) if path.exists() else {}


def prompt_ids(text: str, tokenizer: Tokenizer, usage: dict[str, Any]) -> np.ndarray:
    """The ids of a prompt, i32[n], behind the token that the model's texts begin with, if any."""
    try:
        ids = tokenizer.encode(text, allow_special=True)
    except ConfigError as error:
        raise ConfigError(f"--prompt: {error}") from None
    first = tokenizer.special_ids.get(usage.get("bos_token", ""))
    if not usage.get("add_bos_token") or first is None or ids[:1].tolist() == [first]:
        return ids
    return np.concatenate([[first], ids]).astype(np.int32)


def open_base(cfg: RunConfig, model: LanguageModel, layout: Layout | None = None) -> TrainedRun:
    """The weights that this run starts from, placed as `layout` says; None: on one device.

    Raises:
      ConfigError: nothing there, or no checkpoint; its weights are of other shapes than `cfg.model`
        has, or cfg.model would compute something else with a base that adapters are added to.
    """
    source = str(cfg.train.init_from)
    specs = kinds.param_specs(_require(source).model)
    try:
        params_lib.check_params(params_lib.abstract_params(specs), model.specs)
    except ValueError as error:
        raise ConfigError(
            f"{SOURCE_FLAG}={source}: its weights are of another model: {error}"
        ) from None
    if pretrained.is_pretrained(source):
        base = _open_pretrained(pathlib.Path(source), specs, layout)
    else:
        base = open_run(pathlib.Path(source), flag=SOURCE_FLAG, layout=layout)
    if cfg.lora.rank is not None:
        check_same_model(base.cfg.model, cfg.model, f"{SOURCE_FLAG}={source}: adapters need")
    return base


def check_same_model(base: AnyModelConfig, given: AnyModelConfig, need: str) -> None:
    """Raises ConfigError, beginning with `need`, where equal weights would compute otherwise."""
    other = [
        line for line in config_lib.diff(base, given) if line.partition(":")[0] not in FREE_OF_BASE
    ]
    if other:
        raise ConfigError(
            f"{need} the base's own model (its field -> yours): {'; '.join(other)}. Give these "
            f"{FLAG}model fields its values"
        )


def _require(source: str) -> RunConfig:
    if (cfg := config_of_source(source)) is None:
        raise ConfigError(
            f"{SOURCE_FLAG}={source}: holds no run (no {workdir.CONFIG_FILE}), and is no Hugging "
            "Face folder or GGUF file"
        )
    return cfg


def _open_pretrained(
    source: pathlib.Path, specs: dict[str, Any], layout: Layout | None
) -> TrainedRun:
    cfg, params = pretrained.load_weights(source)
    if layout is not None:
        params = jax.tree.map(
            lambda x, at: jax.make_array_from_callback(x.shape, at.sharding, x.__getitem__),
            params,
            layout.weights(specs),
        )
    return TrainedRun(
        cfg=RunConfig(model=cfg),
        tokenizer=pretrained.load_tokenizer(source),
        model=kinds.build(cfg),
        params=params,
        settled=params,
        step=0,
        checkpoint=source,
        corpus=None,
        adapters={},
    )
