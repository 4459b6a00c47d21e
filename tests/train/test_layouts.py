"""The tables, and what is refused before anything is compiled. tests/jobs runs them on devices."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxlm.core.config import ConfigError
from jaxlm.core.sharding import sharding_of
from jaxlm.models import transformer
from jaxlm.optim.config import OptimConfig, hyper_values
from jaxlm.optim.optimizers import make_tx
from jaxlm.train.config import RunConfig, TrainConfig
from jaxlm.train.layouts import MESH_AXES, TABLES, Layout, MeshConfig, make_layout
from jaxlm.train.state import init_state

ROOT = pathlib.Path(__file__).parents[2]


def abstract_layout(name, data, fsdp, tensor):
    mesh = jax.sharding.AbstractMesh((data, fsdp, tensor), MESH_AXES)
    return Layout(mesh, TABLES[name], sharding_of((), mesh, {}))


def parts(tree):
    """{path: the shape of what one device holds}."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {
        name(path): leaf.sharding.shard_shape(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def placed_state(cfg, optim, layout):
    specs = transformer.param_specs(cfg)
    hypers = hyper_values(optim, num_steps=1000, d_model=cfg.d_model)
    state = jax.eval_shape(lambda: init_state(0, specs, hypers, make_tx(optim, specs)))
    return layout.state(state, specs, {})


@pytest.fixture(scope="module")
def cfg(small_cfg):
    return dataclasses.replace(small_cfg, vocab_size=16)


def share(tree):
    """Numbers on one device over all numbers."""
    leaves = jax.tree.leaves(tree)
    held = sum(jnp.prod(jnp.array(x.sharding.shard_shape(x.shape))) for x in leaves)
    return float(held / sum(x.size for x in leaves))


@pytest.mark.parametrize(
    ("name", "weights", "optimizer"),
    [("dp", 1, 1), ("fsdp", 1 / 4, 1 / 4), ("fsdp_tp", 1 / 8, 1 / 8), ("zero1", 1, 1 / 8)],
)
def test_each_layout_leaves_its_share_of_the_weights_on_a_device(name, weights, optimizer, cfg):
    """Of 16 devices, 2 x 4 x 2; gains are split over fsdp alone, so tensor halves but them."""
    layout = abstract_layout(name, 2, 4, 2)
    state = placed_state(cfg, OptimConfig(), layout)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert share(state.params) == pytest.approx(weights, rel=0.05)
    assert share(moments) == pytest.approx(optimizer, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "sgd", "adagrad", "adadelta"])
def test_an_array_of_the_optimizer_lies_with_the_weight_it_belongs_to(optimizer, cfg):
    state = placed_state(cfg, OptimConfig(name=optimizer), abstract_layout("fsdp_tp", 1, 4, 2))
    weights, held = parts(state.params), parts(state.opt_state)
    belong = {w: [p for p in held if p.endswith(f"/{w}")] for w in weights}
    for weight, paths in belong.items():
        assert paths and {held[path] for path in paths} == {weights[weight]}, weight
    others = set(held) - {path for paths in belong.values() for path in paths}
    assert all(held[path] in ((), (3,)) for path in others)  # counts, and Muon's coefficients


def test_what_is_left_whole_is_split_over_nothing(small_cfg):
    mesh = MeshConfig(whole=("vocab",))
    layout = make_layout(mesh, transformer.param_specs(small_cfg), num_rows=4)
    assert "vocab" not in layout.tables.weights and "heads" in layout.tables.weights


class Device:
    """Stands for an accelerator: a mesh asks no more of one than what kind it is."""

    platform, process_index = "tpu", 0


@pytest.mark.parametrize(
    ("mesh", "num_rows", "sizes"),
    [
        ({}, 16, (8, 1, 1)),
        ({}, 12, (6, 1, 1)),
        ({"fsdp": 2}, 12, (3, 2, 1)),
        ({"tensor": 2}, 16, (4, 1, 2)),
        ({"data": 2}, 16, (2, 1, 1)),
        ({}, 7, (7, 1, 1)),
    ],
)
def test_by_default_as_many_devices_as_divide_the_batch_are_taken(mesh, num_rows, sizes, cfg):
    devices = [Device() for _ in range(8)]
    specs = transformer.param_specs(cfg)
    layout = make_layout(MeshConfig(**mesh), specs, num_rows=num_rows, devices=devices)
    assert tuple(layout.mesh.shape.values()) == sizes


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 16}, r"mesh.fsdp=16: 16 devices are needed, there are 8 \(tpu\)"),
        ({"data": 3}, r"16 rows .* cannot be split evenly among 3 devices"),
        (
            {"tensor": 8},
            r"--config.mesh.tensor=8: blocks/wk: dimension 2 \(kv_heads\) is 4, not a multiple of "
            r"8; change --config.mesh.tensor or --config.model.num_kv_heads, or leave the axis "
            r"whole with --config.mesh.whole=kv_heads",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_before_it_is_compiled(mesh, message, cfg):
    devices = [Device() for _ in range(8)]
    specs = transformer.param_specs(cfg)
    with pytest.raises(ConfigError, match=message):
        make_layout(MeshConfig(**mesh), specs, num_rows=16, devices=devices)


def test_zero1_names_both_mesh_axes_that_split_the_optimizer(cfg):
    wide = dataclasses.replace(cfg, d_model=20, head_dim=4)
    mesh = MeshConfig(data=4, fsdp=2, layout="zero1")
    devices = [Device() for _ in range(8)]
    specs = transformer.param_specs(wide)
    with pytest.raises(ConfigError, match=r"data=4 --config.mesh.fsdp=2: .*\(embed\) is 20.* of 8"):
        make_layout(mesh, specs, num_rows=16, devices=devices)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fsdp": 0}, "fsdp=0 must be at least 1"),
        ({"tensor": 2, "layout": "fsdp"}, "layout=fsdp splits nothing over it"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**fields)


@pytest.mark.parametrize("fields", [{"fsdp": 2}, {"tensor": 2}, {"layout": "zero1"}])
def test_pmap_splits_the_batch_alone(fields):
    with pytest.raises(ValueError, match="splits nothing but the batch"):
        RunConfig(train=TrainConfig(parallel="pmap"), mesh=MeshConfig(**fields))


SPLIT_ATTEND = """
import functools, jax, jax.numpy as jnp, numpy as np
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.kernels import flash_attention
from jaxlm.nn import attention
from jaxlm.train.layouts import MeshConfig, make_layout

keys = jax.random.split(jax.random.key(0), 4)
q, k, v, d = (jax.random.normal(key, (4, 24, n, 8)) for key, n in zip(keys, (4, 2, 2, 4)))
segments = jnp.asarray(np.arange(24)[None] // np.array([[8], [12], [5], [24]]), jnp.int32)
kinds = {"causal": True, "window": 9, "q_segments": segments, "kv_segments": segments}

def pulled(attend):
    out, pull = jax.vjp(lambda *x: attend(*x, **kinds), q, k, v)
    return out, *pull(d)

want = jax.jit(lambda: pulled(attention.attend))()
for whole in ((), ("kv_heads",)):
    mesh = MeshConfig(data=1, fsdp=2, tensor=2, whole=whole)
    split = make_layout(mesh, {}, num_rows=4).split_attend(
        functools.partial(flash_attention.attend, interpret=True)
    )
    for got, exact in zip(jax.jit(lambda: pulled(split))(), want):
        np.testing.assert_allclose(got, exact, atol=2e-5)
print("equal")
"""


def test_a_kernel_that_xla_cannot_split_runs_on_each_devices_rows_and_heads():
    """Values and gradients of the plain one, with grouped heads, windows and packed rows."""
    child = subprocess.run(
        [sys.executable, "-c", SPLIT_ATTEND],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        },
    )
    assert child.stdout == "equal\n", child.stderr
