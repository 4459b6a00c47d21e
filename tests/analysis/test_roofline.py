"""The roofline by hand."""

import pytest

from jaxlm.analysis.hlo import Collective
from jaxlm.analysis.roofline import Bound, Chip, Work, bound, chip_of, product_bytes, sent_bytes
from jaxlm.core.params import ParamSpec, zeros


def spec(shape, axes, num_in=1):
    return ParamSpec(shape=shape, axes=tuple(axes.split()), num_in=num_in, init=zeros)


SPECS = {
    "embed": spec((50, 8), "vocab embed"),
    "gain": spec((8,), "embed", num_in=0),
    "blocks": {
        "wq": spec((3, 8, 4, 6), "layers embed heads head_dim"),
        "wo": spec((3, 4, 6, 8), "layers heads head_dim embed", num_in=2),
    },
}


def test_each_product_reads_its_operands_and_writes_its_result():
    count = {"tokens": 10, "width": 2, "products": 3}
    wq, wo = 10 * (8 + 24) + 8 * 24, 10 * (24 + 8) + 24 * 8
    assert product_bytes(SPECS, False, parts={}, **count) == 3 * 2 * 3 * (wq + wo)
    head = 10 * (50 + 8) + 50 * 8
    assert product_bytes(SPECS, True, parts={}, **count) == 3 * 2 * (3 * (wq + wo) + head)


def test_what_is_split_over_devices_is_read_in_parts():
    count = {"tokens": 10, "width": 2, "products": 4}
    wq, wo = 10 * (8 + 12) + 8 * 12, 10 * (12 + 8) + 12 * 8
    got = product_bytes(SPECS, False, parts={"heads": 2, "vocab": 2}, **count)
    assert got == 4 * 2 * 3 * (wq + wo)


def test_an_all_reduce_sends_its_array_twice():
    sent = {"all-reduce": Collective(3, 100), "all-gather": Collective(1, 7)}
    assert sent_bytes(sent) == 207


def test_the_bound_is_each_resource_alone():
    chip = Chip(memory_bytes=16e9, memory_bytes_per_s=800e9, link_bytes_per_s=200e9)
    work = Work(flops=1e12, memory_bytes=8e9, sent_bytes=1e9)
    assert bound(work, chip, peak_flops=200e12) == pytest.approx(Bound(5e-3, 10e-3, 5e-3))


@pytest.mark.parametrize(
    ("kind", "gibibytes"),
    [("TPU v4", 32), ("TPU v5 lite", 16), ("TPU v5", 95), ("TPU v5p", 95), ("TPU v6 lite", 32)],
)
def test_chips_are_known_by_the_names_that_jax_gives_them(kind, gibibytes):
    assert chip_of(kind).memory_bytes == gibibytes * 2**30


def test_of_other_devices_nothing_is_claimed():
    assert chip_of("cpu") is None and chip_of("NVIDIA H100 80GB HBM3") is None
