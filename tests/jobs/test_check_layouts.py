"""--job=check_layouts: the real layouts on 8 devices, and what it takes for a difference."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.params import count_params
from jaxlm.jobs import check_layouts
from jaxlm.jobs.check_layouts import Trained, checked_config, difference, unequal_replicas
from jaxlm.jobs.configs import read_config
from jaxlm.models import transformer

LAYOUTS = ("one device", "dp", "fsdp", "fsdp_tp", "zero1", "pmap")


@pytest.fixture(scope="module")
def outcome(launch, config):
    """Of grouped key heads, biases, microbatches and packed rows; a process with 8 devices."""
    return launch.command(
        "--job=check_layouts",
        "--shrink",
        config,
        "--config.model.num_layers=3",
        "--config.model.num_heads=4",
        "--config.model.num_kv_heads=2",
        "--config.model.bias=true",
        "--config.data.mask_documents=true",
        "--config.train.num_microbatches=2",
        "--config.optim.name=sgd",
    )


def test_every_layout_trains_as_one_device_does(outcome):
    assert outcome.code == 0, outcome.out + outcome.err
    rows = outcome.out.split("\n\n")[1].splitlines()[1:]
    assert [row.partition("  ")[0] for row in rows] == list(LAYOUTS)
    assert all(row.endswith("  ok") for row in rows)
    assert "all layouts agree" in outcome.out
    assert "full remat" not in outcome.err, outcome.err  # XLA's word for a layout it cannot reach


def test_what_the_layouts_send_follows_from_the_weights(outcome, config):
    """DP and pmap sum one gradient; FSDP gathers every weight twice, zero1 once."""
    overrides = {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "bias": True}
    cfg = read_config(config.removeprefix("--config="))
    cfg = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, **overrides),
        train=dataclasses.replace(cfg.train, num_microbatches=2),
    )
    specs = transformer.param_specs(checked_config(cfg, shrink=True).model)
    megabytes = 4 * count_params(specs) / 1e6
    lines = outcome.out.split("\n\n")[2].splitlines()[1:]
    sent = {(row.split()[0], row.split()[1]): float(row.split()[-1]) for row in lines}
    assert sent["pmap", "all-reduce"] == pytest.approx(megabytes, abs=0.01)
    assert sent["zero1", "all-gather"] == pytest.approx(megabytes, abs=0.01)
    # each of two microbatches
    assert sent["dp", "all-reduce"] == pytest.approx(2 * megabytes, abs=0.01)
    assert sent["fsdp", "all-gather"] == pytest.approx(4 * megabytes, rel=0.1)


def trained(loss=2.0, gradient=1.0, weight=1.0):
    return Trained(
        losses=np.full(5, loss),
        gradients={"w": np.float32([3.0, 4.0]) * np.float32(gradient)},
        params={"w": np.float32([1.0, weight])},
        unequal=[],
        collectives={},
    )


@pytest.mark.parametrize(
    ("other", "rounding"),
    [
        ({}, True),
        ({"loss": 2.0 + 1e-6, "gradient": 1 + 5e-6, "weight": 1 + 5e-6}, True),
        ({"loss": 2.0 + 4e-6}, False),
        ({"gradient": 1 + 4e-5}, False),
        ({"weight": 1 + 4e-5}, False),
        ({"loss": np.nan}, False),
        ({"weight": np.inf}, False),
    ],
)
def test_only_rounding_is_let_pass(other, rounding):
    assert difference(trained(**other), trained()).is_rounding is rounding


def test_copies_of_one_part_that_differ_are_named():
    def shard(index, value):
        return types.SimpleNamespace(index=index, data=jnp.float32(value))

    def leaf(*values):
        shards = [shard(index, value) for index, value in values]
        return types.SimpleNamespace(dtype=jnp.dtype("float32"), addressable_shards=shards)

    state = {"a": leaf((0, 1.0), (0, 1.0)), "b": leaf((0, 1.0), (0, 2.0), (1, 3.0))}
    assert unequal_replicas(state) == ["b"]


def test_a_layout_is_told_of_when_it_is_done(monkeypatch, capsys):
    """Before the next one is compiled; the columns are those of the whole table."""
    told = []

    def train(cfg, optim):
        told.append(capsys.readouterr().out)
        return trained()

    placed = types.SimpleNamespace(description="data 8")
    monkeypatch.setattr(check_layouts, "train", train)
    monkeypatch.setattr(check_layouts, "layout_of", lambda cfg, specs: placed)
    check_layouts.report(checked_config(read_config("configs/plays.py"), shrink=True))
    rows = [out for out in told if out]
    assert [out.split("  ")[0].split("\n")[-1] for out in rows] == ["layout", *LAYOUTS[:-1]]
    starts = {
        out.strip("\n").splitlines()[-1].index(word)
        for out, word in zip(rows, ["devices", *["data 8"] * 5], strict=True)
    }
    assert len(starts) == 1


def test_a_config_is_made_to_divide_among_the_devices():
    cfg = read_config("configs/plays.py")
    checked = checked_config(cfg, shrink=False)
    assert checked.data.batch_size == 16 and cfg.data.batch_size == 12
    assert checked.model.vocab_size == 256
    assert dataclasses.replace(checked.model, vocab_size=None) == cfg.model
    assert checked_config(cfg, shrink=True).model.d_model < cfg.model.d_model
    assert check_layouts.NUM_DEVICES == 8
