"""The choice of attention: by device and length, never of one that computes something else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models import backends
from jaxlm.models.backends import choose_attend
from jaxlm.models.transformer import build
from jaxlm.nn import attention


@pytest.fixture
def long_cfg(small_cfg):
    return dataclasses.replace(small_cfg, context_length=2048)


def test_short_contexts_on_a_cpu_take_the_plain_one(small_cfg):
    assert choose_attend("auto", small_cfg, platform="cpu").name == "plain"


def test_long_contexts_take_one_that_agrees_with_the_plain_one(long_cfg):
    choice = choose_attend("auto", long_cfg)
    assert choice.name == "chunked" and "of the plain one" in choice.why


@pytest.mark.parametrize("fault", ["values", "gradients", "nan", "refuses"])
def test_one_that_computes_something_else_here_is_left_out(fault, long_cfg, monkeypatch):
    def faulty(q, k, v, **options):
        if fault == "refuses":
            raise NotImplementedError("not on this device")
        out = attention.attend(q, k, v, **options)
        if fault == "gradients":
            return jax.lax.stop_gradient(out)
        return out * (jnp.nan if fault == "nan" else 1.01)

    monkeypatch.setattr(backends, "BACKENDS", backends.BACKENDS | {"chunked": faulty})
    choice = choose_attend("auto", long_cfg)
    assert choice.name == "plain" and "chunked is off by" in choice.why


def test_what_is_forced_is_taken(small_cfg):
    choice = choose_attend("chunked", small_cfg)
    assert choice.name == "chunked" and choice.attend is backends.BACKENDS["chunked"]


@pytest.mark.parametrize(
    ("changes", "platform", "expected"),
    [
        ({}, "tpu", ["plain"]),
        ({"context_length": 4096}, "tpu", ["flash", "chunked", "plain"]),
        ({"dtype": "bfloat16"}, "gpu", ["cudnn", "plain"]),
        ({"dtype": "bfloat16", "attention_softcap": 5.0}, "gpu", ["plain"]),
        ({"context_length": 4096}, "gpu", ["chunked", "plain"]),
        ({"context_length": 4096}, "cpu", ["chunked", "plain"]),
        ({"context_length": 64}, "cpu", ["split"]),
        ({"context_length": 64, "causal": False}, "cpu", ["plain"]),
        ({"context_length": 64, "causal": False, "window": 8}, "cpu", ["split"]),
    ],
)
def test_candidates_by_device(changes, platform, expected, small_cfg):
    cfg = dataclasses.replace(small_cfg, **changes)
    assert backends.candidates(cfg, False, platform) == expected


def test_cudnn_is_not_proposed_for_packed_rows_whose_mask_it_would_hold(small_cfg):
    cfg = dataclasses.replace(small_cfg, dtype="bfloat16", context_length=4096)
    assert backends.candidates(cfg, True, "gpu") == ["chunked", "plain"]


@pytest.mark.parametrize(
    ("changes", "platform", "message"),
    [
        ({}, "cpu", "needs an NVIDIA GPU"),
        ({}, "gpu", "needs model.dtype=bfloat16"),
        ({"dtype": "bfloat16", "attention_softcap": 5.0}, "gpu", "has no softcap"),
    ],
)
def test_cudnn_is_refused_where_it_cannot_serve(changes, platform, message, small_cfg):
    with pytest.raises(ValueError, match=message):
        choose_attend("cudnn", dataclasses.replace(small_cfg, **changes), platform=platform)


def test_flash_is_refused_where_it_would_be_interpreted(small_cfg):
    with pytest.raises(ValueError, match="needs a TPU, and this is a gpu"):
        choose_attend("flash", small_cfg, platform="gpu")


def test_flash_passes_the_probe(small_cfg):
    assert backends.probe(backends.BACKENDS["flash"], small_cfg) < 1e-5


def test_a_model_computes_the_same_with_each(small_cfg, params_of, make_batch):
    """Float32 sums in another order: 1e-5 of logits of order one."""
    batch, params = make_batch(0, np.ones((2, 12))), params_of(small_cfg)
    names = ("plain", "split", "chunked")
    models = [build(small_cfg, attend=choose_attend(n, small_cfg).attend) for n in names]
    exact, *others = (jax.jit(m.forward)(params, batch.tokens) for m in models)
    for logits in others:
        np.testing.assert_allclose(logits, exact, atol=1e-5)


def test_layers_are_written_out_on_a_gpu_alone_unless_the_config_says(small_cfg):
    deep = dataclasses.replace(small_cfg, num_layers=48)
    assert backends.choose_unroll(deep, "gpu") == 16
    assert backends.choose_unroll(small_cfg, "gpu") == small_cfg.num_layers
    assert backends.choose_unroll(deep, "tpu") == backends.choose_unroll(deep, "cpu") == 1
    assert backends.choose_unroll(dataclasses.replace(deep, scan_unroll=3), "gpu") == 3
