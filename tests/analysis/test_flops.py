"""FLOP counts by hand and by XLA; peaks by device kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.analysis.flops import matmul_params, mfu, of_model, peak_flops, train_flops_per_token
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.models import transformer
from jaxlm.models.transformer import TransformerConfig

N, D, H, DH, F, V, S = 2, 16, 2, 8, 48, 40, 32


def spec(shape, axes, num_in=1):
    return ParamSpec(shape=shape, axes=tuple(axes.split()), num_in=num_in, init=zeros)


SPECS = {
    "embed": spec((V, D), "vocab embed"),
    "positions": spec((S, D), "positions embed"),
    "blocks": {
        "norm": spec((N, D), "layers embed", num_in=0),
        "wq": spec((N, D, H, DH), "layers embed heads head_dim"),
        "wk": spec((N, D, H, DH), "layers embed heads head_dim"),
        "wv": spec((N, D, H, DH), "layers embed heads head_dim"),
        "wo": spec((N, H, DH, D), "layers heads head_dim embed", num_in=2),
        "w_up": spec((N, D, F), "layers embed mlp"),
        "b_up": spec((N, F), "layers mlp", num_in=0),
        "w_down": spec((N, F, D), "layers mlp embed"),
    },
}
HEAD = {"unembed": spec((D, V), "embed vocab"), "bias": spec((V,), "vocab", num_in=0)}
IN_BLOCKS = 2 * (4 * 16 * 16 + 2 * 16 * 48)  # 5120


def test_matmul_params_by_hand():
    assert matmul_params(SPECS | HEAD, tied=False) == IN_BLOCKS + 16 * 40
    assert matmul_params(SPECS, tied=True) == IN_BLOCKS + 40 * 16  # not the positions


def test_flops_by_hand():
    flops = train_flops_per_token(5760, num_layers=2, context_length=32, num_heads=2, head_dim=8)
    assert flops.full == 6 * 5760 + 12 * 2 * 32 * 2 * 8 == 46848
    assert flops.causal == 6 * 5760 + 6 * 2 * 32 * 2 * 8 == 40704


@pytest.mark.parametrize("window", [1, 8, 31, 32, 100])
def test_with_a_window_the_causal_count_is_that_of_the_products_it_keeps(window):
    """Counted pair by pair, to the half of a diagonal that the convention leaves out."""
    query, key = np.indices((S, S))
    kept = np.sum((key <= query) & (query - key < window))
    flops = train_flops_per_token(0, N, S, H, DH, window=window)
    per_pair = 12 * N * H * DH / S  # of a token
    assert abs(flops.causal - per_pair * kept) <= per_pair * S / 2
    assert flops.full == per_pair * S * S


def test_the_window_of_a_model_is_counted():
    short, whole = (
        of_model(cfg, transformer.build(cfg))
        for window in (4, None)
        for cfg in [TransformerConfig(vocab_size=V, context_length=S, window=window)]
    )
    assert short.full == whole.full and short.causal < whole.causal


def test_flops_are_those_xla_counts():
    """Loss and gradient of a two-layer model written out with matrix products alone.

    XLA also counts pointwise work: softmax, ReLU and their gradients, the loss and the sums of
    embedding gradients. Here that is 4 % of the products (it falls with the width), and no
    product may be missing.
    """

    def loss(params, tokens):
        x = params["embed"][tokens]
        blocks = params["blocks"]
        for n in range(N):
            q, k, v = (jnp.einsum("sd,dhe->she", x, blocks[w][n]) for w in ("wq", "wk", "wv"))
            weights = jax.nn.softmax(jnp.einsum("she,the->hst", q, k))
            x = x + jnp.einsum(
                "she,hed->sd", jnp.einsum("hst,the->she", weights, v), blocks["wo"][n]
            )
            x = x + jax.nn.relu(x @ blocks["w_up"][n]) @ blocks["w_down"][n]
        return jnp.sum(jnp.square(x @ params["unembed"]))

    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), SPECS | HEAD)
    compiled = (
        jax.jit(jax.grad(loss)).lower(shapes, jax.ShapeDtypeStruct((S,), jnp.int32)).compile()
    )
    counted = compiled.cost_analysis()["flops"]
    ours = S * train_flops_per_token(matmul_params(SPECS | HEAD, False), N, S, H, DH).full
    assert ours <= counted <= 1.08 * ours


@pytest.mark.parametrize(
    "device_kind, dtype, tera",
    [
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "float16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA L4", "bfloat16", 121),
        ("Tesla T4", "float16", 65),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-32GB", "float16", 112),
        ("TPU v2", "bfloat16", 22.5),
        ("TPU v3", "bfloat16", 61.5),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
    ],
)
def test_peak_by_device_kind(device_kind, dtype, tera):
    assert peak_flops(device_kind, dtype) == tera * 1e12


@pytest.mark.parametrize(
    "device_kind, dtype",
    [
        ("cpu", "bfloat16"),
        ("NVIDIA L40S", "bfloat16"),
        ("NVIDIA GH200 480GB", "bfloat16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16"),
        ("NVIDIA A100-SXM4-40GB", "float32"),
        ("Tesla T4", "bfloat16"),
        ("TPU v4 lite", "bfloat16"),
        ("TPU v4", "float16"),
    ],
)
def test_no_peak_and_no_percentage_where_it_is_not_known(device_kind, dtype):
    assert peak_flops(device_kind, dtype) is None
    assert mfu(1e3, 1e9, device_kind=device_kind, dtype=dtype, num_devices=1) is None


def test_mfu_by_hand():
    share = mfu(1e6, 312e6, device_kind="NVIDIA A100-SXM4-80GB", dtype="bfloat16", num_devices=4)
    assert share == pytest.approx(0.25)
