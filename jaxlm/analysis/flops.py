"""Counting the arithmetic of training, and the share of a device's peak that a run reaches.

Pure counting from shapes; nothing here compiles or measures.
"""

import re
from typing import NamedTuple

from jaxlm.core import trees
from jaxlm.models.api import LanguageModel, ModelConfig


class TrainFlops(NamedTuple):
    """Floating-point operations a token, forward and backward, under the two conventions."""

    full: float  # every query attends to every position
    causal: float  # the attention products that the mask keeps


def train_flops_per_token(
    num_matmul_params: int,
    num_layers: int,
    context_length: int,
    num_heads: int,
    head_dim: int,
    *,
    window: int | None = None,
) -> TrainFlops:
    """6 * matmul parameters + 12 * N * S * H * Dh, and the same with `keys_per_query` for S.

    A multiply and an add are two operations; the backward pass costs two forward ones. Work that
    rematerialisation repeats is not counted, nor are norms, softmax and other pointwise work.

    Source: Chowdhery et al. 2022, "PaLM", appendix B (full); Dao 2023, "FlashAttention-2",
    section 4.1 (causal).
    """
    matmuls, a_key = 6 * num_matmul_params, 12 * num_layers * num_heads * head_dim
    kept = keys_per_query(context_length, window)
    return TrainFlops(full=float(matmuls + a_key * context_length), causal=matmuls + a_key * kept)


def keys_per_query(context_length: int, window: int | None) -> float:
    """How many a causal mask keeps on average: half of the context, or fewer with a window."""
    reach = min(window or context_length, context_length)
    return reach - reach**2 / (2 * context_length)


def of_model(cfg: ModelConfig, model: LanguageModel) -> TrainFlops:
    """Training FLOPs a token of any kind of model: of its matrices, and of its attention.

    A recurrent cell, a convolution and a window of embeddings multiply each token with each of
    their weights once, so that for them 6 * matmul parameters is all.
    """
    N, H, Dh = cfg.attention
    products = matmul_params(model.specs, "embed" in model.head)
    return train_flops_per_token(products, N, cfg.context_length, H, Dh, window=model.window)


def matmul_params(specs: dict, tied: bool) -> int:
    """Parameters that each token is multiplied with: the matrices, the head included.

    Looking up an embedding multiplies nothing; a tied head does multiply with the vocabulary
    table, which then counts once.
    """
    leaves = trees.flatten(specs).values()
    matrices = sum(spec.size for spec in leaves if spec.kind == "matrix")
    tables = sum(s.size for s in leaves if s.kind == "lookup" and s.axes[0] == "vocab")
    return matrices + (tables if tied else 0)


# Dense matrix peaks in FLOP/s of one JAX device, by a pattern over jax.Device.device_kind; the
# first match counts. Data sheets that quote sparse figures are halved. float32 has no entry:
# its peak depends on the precision asked for (TF32, bfloat16 passes or none of them).
_BF16 = ("bfloat16", "float16")  # the tensor cores run both at one rate
_PEAKS: list[tuple[str, tuple[str, ...], float]] = [
    # NVIDIA A100 data sheet, 2021: 312 TFLOPS for SXM and PCIe.
    (r"A100", _BF16, 312e12),
    # NVIDIA H100 data sheet, 2023 and 2024: 1,513 (PCIe), 1,671 (NVL), 1,979 (SXM), sparse.
    (r"H100 PCIe", _BF16, 756.5e12),
    (r"H100 NVL", _BF16, 835.5e12),
    (r"H100", _BF16, 989.5e12),
    # NVIDIA H200 data sheet, 2024: 1,671 (NVL), 1,979 (SXM), sparse.
    (r"H200 NVL", _BF16, 835.5e12),
    (r"H200", _BF16, 989.5e12),
    # NVIDIA L4 data sheet, 2023: 242, sparse.
    (r"L4", _BF16, 121e12),
    # NVIDIA T4 data sheet, 2019: 65, float16; Turing has no bfloat16.
    (r"T4", ("float16",), 65e12),
    # NVIDIA V100 data sheet, 2020: 112 (PCIe), 125 (SXM2), 130 (V100S), float16 only.
    (r"V100-PCIE", ("float16",), 112e12),
    (r"V100S", ("float16",), 130e12),
    (r"V100", ("float16",), 125e12),
    # Google Cloud TPU documentation, "System architecture", a page for each version: peak
    # bfloat16 compute of a chip. A device of v2 and v3 is a core, half a chip.
    (r"TPU v2$", ("bfloat16",), 45e12 / 2),
    (r"TPU v3$", ("bfloat16",), 123e12 / 2),
    (r"TPU v4$", ("bfloat16",), 275e12),
    (r"TPU v5 ?(lite|e)$", ("bfloat16",), 197e12),
    (r"TPU v5p?$", ("bfloat16",), 459e12),
    (r"TPU v6 ?(lite|e)$", ("bfloat16",), 918e12),
]


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense matrix peak in FLOP/s of one device of this kind, or None where it is not known.

    Args:
      device_kind: `jax.devices()[0].device_kind`, such as "NVIDIA H100 80GB HBM3".
      dtype: of the products' operands: "bfloat16" or "float16".
    """
    if "MIG" in device_kind:  # a slice of a GPU
        return None
    for pattern, dtypes, peak in _PEAKS:
        if re.search(rf"\b{pattern}(?!\w)", device_kind):
            return peak if dtype in dtypes else None
    return None


def mfu(
    tokens_per_s: float, flops_per_token: float, *, device_kind: str, dtype: str, num_devices: int
) -> float | None:
    """Model FLOPs utilisation in [0, 1], or None where the peak of the device is not known.

    tokens_per_s is of all `num_devices` together.
    """
    peak = peak_flops(device_kind, dtype)
    return None if peak is None else tokens_per_s * flops_per_token / (num_devices * peak)
