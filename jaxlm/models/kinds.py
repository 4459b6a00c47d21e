"""The models that a run can train, told apart by their config's `kind`."""

from types import ModuleType
from typing import Any

from jaxlm.models import bigram, convolution, mlp, recurrent, transformer
from jaxlm.models.api import LanguageModel, ModelConfig
from jaxlm.models.bigram import BigramConfig
from jaxlm.models.convolution import ConvolutionConfig
from jaxlm.models.mlp import MlpConfig
from jaxlm.models.recurrent import RecurrentConfig
from jaxlm.models.transformer import TransformerConfig

AnyModelConfig = TransformerConfig | RecurrentConfig | ConvolutionConfig | MlpConfig | BigramConfig

_MODULES: dict[type, ModuleType] = {
    TransformerConfig: transformer,
    RecurrentConfig: recurrent,
    ConvolutionConfig: convolution,
    MlpConfig: mlp,
    BigramConfig: bigram,
}


def param_specs(cfg: AnyModelConfig) -> dict[str, Any]:
    """Every weight of the config's model, by path."""
    return _MODULES[type(cfg)].param_specs(cfg)


def build(cfg: ModelConfig, **options: Any) -> LanguageModel:
    """The config's model; options: those of its own `build`."""
    return _MODULES[type(cfg)].build(cfg, **options)
