"""Gradient norms against a Python loop over layers and examples, with norms in numpy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit

from jaxlm.analysis.gradient_norms import global_norm, gradient_norms, layer_norms, norm
from jaxlm.core import trees
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.models import transformer
from jaxlm.nn.cross_entropy import cross_entropy
from jaxlm.nn.norms import rms_norm
from jaxlm.nn.rope import rope_angles

NUM_EXAMPLES = 4
norm_of_all = quick_jit(lambda x: norm(x, (0,)))


def norm64(*leaves):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves))


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1.0, 1e30, 2e37])
def test_norms_far_beyond_the_range_of_squares(scale):
    x = np.float32(scale) * np.linspace(-1, 1, 7, dtype=np.float32)
    np.testing.assert_allclose(norm_of_all(x), norm64(x), rtol=1e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(value):
    assert not np.isfinite(norm_of_all(np.float32([1, value, 0, 0, 0, 0, 0])))


def test_the_norm_of_zeros_is_zero():
    assert norm_of_all(np.zeros(7, np.float32)) == 0


def test_norm_over_some_axes():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    expected = np.sqrt(np.square(x.astype(np.float64)).sum((0, 2)))
    np.testing.assert_allclose(norm(jnp.asarray(x), (0, 2)), expected, rtol=1e-6)


def test_layers_are_the_stacked_weights_and_nothing_else():
    specs = {
        "embed": ParamSpec(shape=(5, 2), axes=("vocab", "embed"), init=zeros),
        "blocks": {
            "w": ParamSpec(shape=(2, 2, 1), axes=("layers", "embed", "mlp"), init=zeros),
            "gain": ParamSpec(shape=(2, 1), axes=("layers", "embed"), init=zeros),
        },
    }
    grads = {
        "embed": jnp.full((5, 2), 100.0),
        "blocks": {"w": jnp.array([[[2.0], [3.0]], [[0], [8]]]), "gain": jnp.array([[6.0], [15]])},
    }
    np.testing.assert_allclose(layer_norms(grads, specs), [7, 17], rtol=1e-6)
    np.testing.assert_allclose(global_norm(grads), np.sqrt(1e5 + 49 + 289), rtol=1e-6)


def loop_loss(layers, rest, stream_probes, example, cfg):
    """The loss of one example, layer after layer, each with weights and a probe of its own."""
    tokens, targets = example
    x = rest["embed"][tokens][None]
    angles = rope_angles(jnp.arange(len(tokens)), cfg.sizes.Dh, cfg.rope_theta)

    def attend(q, k, v):
        return transformer.plain_attend(q, k, v, causal=True), None

    for w, probe in zip(layers, stream_probes, strict=True):
        x, _ = transformer.block(
            x + probe, w, cfg, angles=angles, attend=attend, constrain=lambda x, _: x
        )
    x = rms_norm(x, rest["final_norm"], cfg.norm_eps)
    return jnp.mean(cross_entropy(transformer.unembed(rest, x, cfg), targets[None])[0])


@pytest.fixture(scope="module")
def example_gradients(small_cfg, params_of):
    """Tokens and targets [B, S]; and of each example the gradients by layer, rest and stream."""
    params = params_of(small_cfg)
    shape = (NUM_EXAMPLES, small_cfg.context_length)
    examples = np.random.default_rng(3).integers(small_cfg.vocab_size, size=(2, *shape))
    layers = [
        jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(small_cfg.num_layers)
    ]
    rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
    probes = [np.zeros((1, shape[1], small_cfg.d_model), np.float32) for _ in layers]
    grad = quick_jit(jax.grad(functools.partial(loop_loss, cfg=small_cfg), (0, 1, 2)))
    grads = [grad(layers, rest, probes, tuple(example)) for example in examples.swapaxes(0, 1)]
    return tuple(examples), jax.device_get(grads)


@pytest.fixture(scope="module")
def measured(small_cfg, params_of, example_gradients):
    examples, _ = example_gradients
    probes = jnp.zeros((small_cfg.num_layers, 1, small_cfg.context_length, small_cfg.d_model))

    def loss_fn(params, probes, example):
        tokens, targets = example
        logits = transformer.forward(params, tokens[None], small_cfg, probes=probes)
        return jnp.mean(cross_entropy(logits, targets[None])[0])

    specs = transformer.param_specs(small_cfg)
    measure = quick_jit(lambda params: gradient_norms(loss_fn, params, probes, examples, specs, 2))
    return measure(params_of(small_cfg))


def test_norms_of_each_example(example_gradients, measured):
    expected = [
        norm64(*jax.tree.leaves((layers, rest))) for layers, rest, _ in example_gradients[1]
    ]
    np.testing.assert_allclose(measured.examples, expected, rtol=1e-5)


def test_norms_by_layer_are_of_the_mean_gradient(example_gradients, measured, small_cfg):
    means = jax.tree.map(lambda *g: np.mean(g, axis=0, dtype=np.float64), *example_gradients[1])
    by_layer = [norm64(*jax.tree.leaves(layer)) for layer in means[0]]
    assert len(by_layer) == small_cfg.num_layers
    np.testing.assert_allclose(measured.layers, by_layer, rtol=1e-5)
    np.testing.assert_allclose(measured.whole, norm64(*jax.tree.leaves(means[:2])), rtol=1e-5)


def test_norms_of_the_stream_are_those_of_the_whole_batch(example_gradients, measured):
    streams = zip(*(probes for _, _, probes in example_gradients[1]), strict=True)
    expected = [norm64(*of_layer) / NUM_EXAMPLES for of_layer in streams]
    np.testing.assert_allclose(measured.stream, expected, rtol=1e-5)


def test_examples_at_once_must_divide_them():
    x = jnp.zeros((6, 2))
    with pytest.raises(ValueError, match="at_once=4 must divide the 6 examples"):
        gradient_norms(None, {}, x, x, {}, at_once=4)


def test_paths_of_the_transformers_layers_are_all_counted(small_cfg):
    specs = trees.flatten(transformer.param_specs(small_cfg))
    assert {p for p, s in specs.items() if s.stacked} == {p for p in specs if "blocks/" in p}
