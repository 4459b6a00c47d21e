"""Two classifiers of small images: a convolutional network, and a transformer over patches."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array, Params
from jaxlm.core.params import ParamSpec, truncated_normal, xavier, zeros
from jaxlm.models import transformer
from jaxlm.models.api import Classifier
from jaxlm.models.dense import dense, dense_specs
from jaxlm.models.transformer import TransformerConfig
from jaxlm.nn.convolution import conv2d, max_pool, patches
from jaxlm.nn.dropout import dropout as drop


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """size: of a square image, in pixels."""

    size: int = 8
    num_channels: int = 1
    num_classes: int = 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{field.name}={value} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvConfig(ImageConfig):
    """Blocks of one 3 x 3 convolution, ReLU, and the largest of each 2 x 2; then a linear map.

    widths: channels after each block; every block halves the size.
    """

    widths: tuple[int, ...] = (16, 32)
    dropout: float = 0.0  # before the linear map

    def __post_init__(self):
        super().__post_init__()
        if self.size % 2 ** len(self.widths):
            raise ValueError(
                f"size={self.size} cannot be halved {len(self.widths)} times, once for each width"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(ImageConfig):
    """Pre-norm encoder over patches behind a learned [CLS], which the classifier reads.

    Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", section 3.1.
    """

    patch: int = 2  # pixels a side
    num_layers: int = 2
    d_model: int = 32
    num_heads: int = 4
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.size % self.patch:
            raise ValueError(f"size={self.size} must be a multiple of patch={self.patch}")
        _ = self.layers  # it checks the rest

    @property
    def layers(self) -> TransformerConfig:
        return TransformerConfig(
            context_length=1 + (self.size // self.patch) ** 2,
            num_layers=self.num_layers,
            d_model=self.d_model,
            num_heads=self.num_heads,
            dropout=self.dropout,
            causal=False,
            norm="layer",
            bias=True,
            activation="gelu",
            positions="learned",
        )


def conv_specs(cfg: ConvConfig) -> dict[str, Any]:
    """conv_0, ...: w [3, 3, channels in, out] and bias [out]; then a dense classifier.

    Each convolution is followed by a pooling that halves both sides: w [side * side * channels, C].
    """
    specs, channels = {}, cfg.num_channels
    for n, width in enumerate(cfg.widths):
        axes = ("height", "width", "channels_in", "channels")
        specs[f"conv_{n}"] = {
            "w": ParamSpec(shape=(3, 3, channels, width), axes=axes, init=xavier(), num_in=3),
            "bias": ParamSpec(shape=(width,), axes=("channels",), init=zeros, num_in=0),
        }
        channels = width
    side = cfg.size // 2 ** len(cfg.widths)
    head = dense_specs(side * side * channels, cfg.num_classes, ("embed", "classes"))
    return {**specs, "classifier": head}


def conv_forward(
    params: Params,
    images: Array,
    cfg: ConvConfig,
    *,
    key: Array | None = None,
    dropout: Array | float | None = None,
) -> Array:
    """Logits f32[B, C] of f32[B, size, size, channels]."""
    x = images
    for n in range(len(cfg.widths)):
        w = params[f"conv_{n}"]
        x = max_pool(jax.nn.relu(conv2d(x, w["w"], w["bias"])), 2)
    x = drop(x.reshape(len(x), -1), cfg.dropout if dropout is None else dropout, key)
    return dense(x, params["classifier"])


def vision_specs(cfg: VisionTransformerConfig) -> dict[str, Any]:
    """patches w [patch * patch * channels, D], cls [D], positions [S, D], classifier w [D, C].

    S: the patches, and the cls token before them. The layers are of `transformer.layer_specs`.
    """
    layers = cfg.layers
    table = ParamSpec(
        shape=(layers.context_length, cfg.d_model),
        axes=("positions", "embed"),
        init=truncated_normal(0.02),
    )
    patch_size = cfg.patch**2 * cfg.num_channels
    return {
        "patches": dense_specs(patch_size, cfg.d_model, ("pixels", "embed")),
        "cls": ParamSpec(shape=(cfg.d_model,), axes=("embed",), init=zeros, num_in=0),
        "positions": table,
        **transformer.layer_specs(layers),
        "classifier": dense_specs(cfg.d_model, cfg.num_classes, ("embed", "classes")),
    }


def vision_forward(
    params: Params, images: Array, cfg: VisionTransformerConfig, **options: Any
) -> Array:
    """Logits f32[B, C] of f32[B, size, size, channels]; options of `transformer.run_layers`."""
    x = dense(patches(images, cfg.patch), params["patches"])
    cls = jnp.broadcast_to(params["cls"], (len(x), 1, cfg.d_model))
    x = jnp.concatenate([cls, x], axis=1) + params["positions"]
    x = transformer.run_layers(params, x, cfg.layers, **options)
    return dense(x[:, 0], params["classifier"])


def build_conv(cfg: ConvConfig) -> Classifier:
    """Reads images f32[B, size, size, channels]."""
    return Classifier(conv_specs(cfg), functools.partial(conv_forward, cfg=cfg))


def build_vision_transformer(cfg: VisionTransformerConfig) -> Classifier:
    """Reads images f32[B, size, size, channels]."""
    return Classifier(vision_specs(cfg), functools.partial(vision_forward, cfg=cfg))
