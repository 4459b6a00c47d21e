"""The plan's candidates and their order, on 8 TPUs that are only names; nothing is compiled."""

import math

import pytest

from jaxlm.core.config import apply_overrides
from jaxlm.jobs import plan
from jaxlm.jobs.setup import backends_of
from jaxlm.train.config import RunConfig

WIDE = {
    "model.num_layers": 8, "model.d_model": 1024, "model.num_heads": 8, "model.num_kv_heads": 2,
    "model.context_length": 1024, "model.vocab_size": 32000, "model.dtype": "bfloat16",
    "data.batch_size": 32,
}  # fmt: skip


class Device:
    """What a layout asks of a device."""

    platform, device_kind, process_index = "tpu", "TPU v5 lite", 0

    def __init__(self, number: int):
        self.id = number


@pytest.fixture(scope="module")
def candidates():
    """Of a config with overrides; the same for all tests that ask for the same."""
    found = {}

    def of(**overrides):
        cfg = apply_overrides(RunConfig(), WIDE | overrides)
        if cfg not in found:
            attention = backends_of(cfg, None, "tpu").attention
            found[cfg] = plan.candidates(cfg, [Device(i) for i in range(8)], attention)
        return cfg, found[cfg]

    return of


def test_candidates_divide_and_come_by_their_time(candidates):
    cfg, found = candidates()
    assert [c.time for c in found] == sorted(c.time for c in found)
    assert sum(c.cfg == cfg for c in found) == 1
    assert len({c.cfg for c in found}) == len(found)
    for each in found:
        mesh, parts = each.layout.mesh, each.cfg.train.num_microbatches
        assert mesh.size <= 8 and 2 % mesh.shape["tensor"] == 0  # two key heads
        assert 32 // parts % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0
    meshes = {tuple(c.layout.mesh.shape.values()) for c in found}
    assert {(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 1)} <= meshes


def test_a_layout_that_splits_no_weights_is_only_tried_on_the_batch(candidates):
    _, found = candidates(**{"mesh.layout": "zero1"})
    meshes = {tuple(c.layout.mesh.shape.values()) for c in found}
    assert meshes == {(8, 1, 1), (4, 1, 1), (2, 1, 1), (1, 1, 1)}


def test_less_memory_costs_time_and_what_saves_it_is_counted(candidates):
    _, found = candidates()
    by = {
        (*c.layout.mesh.shape.values(), c.cfg.train.num_microbatches, c.cfg.model.remat): c
        for c in found
    }
    one = by[8, 1, 1, 1, "none"]
    for other in ((8, 1, 1, 1, "dots"), (8, 1, 1, 1, "full"), (8, 1, 1, 4, "none")):
        assert by[other].held.kept < one.held.kept and by[other].time > one.time
    assert by[1, 8, 1, 1, "none"].held.state < one.held.state / 7
    assert by[8, 1, 1, 4, "none"].held.gradients > one.held.gradients
    assert by[4, 1, 1, 1, "none"].bound.compute_s == 2 * one.bound.compute_s
    # What the head computes is not computed again: less than 4/3.
    assert 1.2 < by[8, 1, 1, 1, "full"].bound.compute_s / one.bound.compute_s < 4 / 3


def test_the_fastest_and_the_nearest_that_fit(candidates):
    cfg, found = candidates(**{"mesh.fsdp": 8})
    assert plan.fastest(found, math.inf) == found[0] == plan.fastest(found, None)
    own = next(c for c in found if c.cfg == cfg)
    less = own.held.total - 1
    assert plan.fastest(found, less).held.total <= less
    near = plan.nearest(cfg, found, less)
    [flag] = plan.changes(cfg, near.cfg)
    assert flag in ("--config.model.remat=dots", "--config.train.num_microbatches=2")
    assert plan.fastest(found, 1) is None is plan.nearest(cfg, found, 1)
    assert apply_overrides(cfg, dict([flag.removeprefix("--config.").split("=")])) == near.cfg
