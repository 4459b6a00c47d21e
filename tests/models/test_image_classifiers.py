"""The convolutional network and the vision transformer against torch's layers."""

import jax
import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params

from jaxlm.models import image_classifiers
from jaxlm.models.image_classifiers import ConvConfig, VisionTransformerConfig

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
CONV = ConvConfig(num_channels=2, num_classes=5, widths=(4, 6))
VISION = VisionTransformerConfig(num_channels=2, num_classes=5, patch=4, d_model=16, num_heads=4)


def test_the_convolutional_network_is_torchs():
    torch = pytest.importorskip("torch")
    model = image_classifiers.build_conv(CONV)
    params = draw_params(model.specs, seed=1)
    x = torch.tensor(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    functional = torch.nn.functional
    for n in range(2):
        w = np.ascontiguousarray(params[f"conv_{n}"]["w"].transpose(3, 2, 0, 1))
        bias = torch.tensor(params[f"conv_{n}"]["bias"])
        x = functional.conv2d(x, torch.tensor(w), bias, padding=1)
        x = functional.max_pool2d(functional.relu(x), 2)
    flat = x.permute(0, 2, 3, 1).reshape(3, -1).numpy()
    expected = flat @ params["classifier"]["w"] + params["classifier"]["bias"]
    np.testing.assert_allclose(quick_jit(model.forward)(params, IMAGES), expected, atol=1e-5)


def test_the_vision_transformer_is_torchs_encoder_over_a_strided_convolution():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    model = image_classifiers.build_vision_transformer(VISION)
    params = draw_params(model.specs, seed=1)

    def layer(n):
        w = {name: stack[n] for name, stack in params["blocks"].items()}
        qkv = np.concatenate([w[name].reshape(16, 16).T for name in ("wq", "wk", "wv")])
        weights = {
            "self_attn.in_proj_weight": qkv,
            "self_attn.in_proj_bias": np.stack([w["bq"], w["bk"], w["bv"]]).reshape(-1),
            "self_attn.out_proj.weight": w["wo"].reshape(16, 16).T,
            "self_attn.out_proj.bias": w["bo"],
            "linear1.weight": w["w_up"].T,
            "linear1.bias": w["b_up"],
            "linear2.weight": w["w_down"].T,
            "linear2.bias": w["b_down"],
            "norm1.weight": w["attn_norm"],
            "norm1.bias": w["attn_norm_bias"],
            "norm2.weight": w["mlp_norm"],
            "norm2.bias": w["mlp_norm_bias"],
        }
        theirs = torch.nn.TransformerEncoderLayer(
            *(16, 4, 64),
            activation=lambda x: functional.gelu(x, approximate="tanh"),
            batch_first=True,
            norm_first=True,
        )
        theirs.load_state_dict(
            {name: torch.tensor(np.ascontiguousarray(w)) for name, w in weights.items()}
        )
        return theirs.eval()

    kernel = params["patches"]["w"].reshape(4, 4, 2, 16).transpose(3, 2, 0, 1)
    pixels = torch.tensor(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        kernel = torch.tensor(np.ascontiguousarray(kernel))
        x = functional.conv2d(pixels, kernel, torch.tensor(params["patches"]["bias"]), stride=4)
        cls = torch.tensor(params["cls"]).expand(3, 1, 16)
        x = torch.cat([cls, x.flatten(2).transpose(1, 2)], 1) + torch.tensor(params["positions"])
        for n in range(2):
            x = layer(n)(x)
        norm = [torch.tensor(params[name]) for name in ("final_norm", "final_norm_bias")]
        first = functional.layer_norm(x[:, 0], (16,), *norm).numpy()
    expected = first @ params["classifier"]["w"] + params["classifier"]["bias"]
    np.testing.assert_allclose(quick_jit(model.forward)(params, IMAGES), expected, atol=2e-5)


@pytest.mark.parametrize(
    "model",
    [image_classifiers.build_conv(CONV), image_classifiers.build_vision_transformer(VISION)],
    ids=["conv", "vision"],
)
def test_dropout_needs_a_key(model):
    params, forward = draw_params(model.specs, seed=1), quick_jit(model.forward)
    plain = forward(params, IMAGES, dropout=0.5)
    np.testing.assert_allclose(plain, forward(params, IMAGES), atol=1e-6)
    dropped = forward(params, IMAGES, key=jax.random.key(0), dropout=0.5)
    assert np.abs(dropped - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvConfig(size=6, widths=(4, 4)), "size=6 cannot be halved 2 times"),
        (lambda: VisionTransformerConfig(patch=3), "size=8 must be a multiple of patch=3"),
        (lambda: VisionTransformerConfig(d_model=10), "must be a multiple of num_heads=4"),
        (lambda: ConvConfig(num_classes=0), "num_classes=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
