"""The least time a training step can take on a chip: arithmetic, memory and network, each alone.

A bound and no forecast: the three are taken to overlap without loss, every product to read its
operands and write its result once, and everything between products to cost nothing.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from jaxlm.analysis.hlo import Collective
from jaxlm.core import trees


class Chip(NamedTuple):
    """One JAX device. link_bytes_per_s: to its neighbours, one way, all links together."""

    memory_bytes: int
    memory_bytes_per_s: float
    link_bytes_per_s: float


# By a pattern over jax.Device.device_kind. Source: Google Cloud TPU documentation, "System
# architecture", a page for each version; of a bidirectional bandwidth of the links the half. What
# it calls GB of memory are GiB, of which the compiler keeps some back: 0.25 of 16.
_CHIPS: list[tuple[str, Chip]] = [
    (r"TPU v4$", Chip(32 * 2**30, 1228e9, 300e9)),
    (r"TPU v5 ?(lite|e)$", Chip(16 * 2**30, 819e9, 200e9)),
    (r"TPU v5p?$", Chip(95 * 2**30, 2765e9, 600e9)),
    (r"TPU v6 ?(lite|e)$", Chip(32 * 2**30, 1640e9, 400e9)),
]


def chip_of(device_kind: str) -> Chip | None:
    """What is known of devices of this kind, or None."""
    return next((chip for pattern, chip in _CHIPS if re.search(pattern, device_kind)), None)


class Work(NamedTuple):
    """What one device does in a step: floating-point operations, bytes of memory, bytes sent."""

    flops: float
    memory_bytes: float
    sent_bytes: float


class Bound(NamedTuple):
    """Seconds a step, each alone; the greatest is the bound."""

    compute_s: float
    memory_s: float
    network_s: float


def bound(work: Work, chip: Chip, peak_flops: float) -> Bound:
    """The roofline of a step.

    Source: Williams et al. 2009, "Roofline", with the network as a third roof.
    """
    return Bound(
        work.flops / peak_flops,
        work.memory_bytes / chip.memory_bytes_per_s,
        work.sent_bytes / chip.link_bytes_per_s,
    )


def product_bytes(
    specs: dict, tied: bool, *, tokens: int, width: int, products: int, parts: Mapping[str, int]
) -> float:
    """Bytes that one device's products with weights read and write in a step.

    Args:
      tied: whether the vocabulary table is multiplied with too.
      tokens: in the batch of one device. width: bytes of a number.
      products: with each weight: 3, one forward and two backward, or 4 where the forward pass is
        computed again.
      parts: {logical axis: how many devices each have a part of it}; other axes are whole.
    """
    total = 0.0
    for spec in trees.flatten(specs).values():
        is_head = spec.kind == "lookup" and spec.axes[0] == "vocab" and tied
        if spec.kind != "matrix" and not is_head:
            continue
        layer = spec.layer
        sizes = [n / parts.get(a, 1) for n, a in zip(layer.shape, layer.axes, strict=True)]
        inputs, outputs = math.prod(sizes[: spec.num_in]), math.prod(sizes[spec.num_in :])
        layers = spec.shape[0] if spec.stacked else 1
        total += layers * (tokens * (inputs + outputs) + inputs * outputs)
    return products * width * total


def sent_bytes(collectives: Mapping[str, Collective]) -> float:
    """What one device sends for these: in a ring an all-reduce sends its array twice."""
    return sum(c.num_bytes * (2 if k == "all-reduce" else 1) for k, c in collectives.items())
