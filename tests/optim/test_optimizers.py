"""Optimizers against optax with constants, torch, and numpy float64.

All of them train one small tree with stacked leaves, on gradients that are drawn beforehand.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core import trees
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.optim.config import OptimConfig, Optimizer, hyper_values
from jaxlm.optim.optimizers import (
    clip_by_global_norm,
    decay_mask,
    make_tx,
    muon_dimension_numbers,
    optimizer_labels,
)

NUM_STEPS, TOTAL = 5, 8
N, D, H, DH, V = 2, 6, 3, 3, 7


def spec(shape, axes, num_in=1):
    return ParamSpec(shape=shape, axes=tuple(axes.split()), num_in=num_in, init=zeros)


SPECS = {
    "embed": spec((V, D), "vocab embed"),
    "blocks": {
        "wq": spec((N, D, H, DH), "layers embed heads head_dim"),
        "wo": spec((N, H, DH, D), "layers heads head_dim embed", num_in=2),
        "norm": spec((N, D), "layers embed", num_in=0),
    },
}
RNG = np.random.default_rng(0)
PARAMS = trees.map_with_path(lambda _, s: RNG.normal(0, 0.5, s.shape).astype(np.float32), SPECS)
GRADS = trees.map_with_path(
    lambda _, s: RNG.normal(0, 0.5, (NUM_STEPS, *s.shape)).astype(np.float32), SPECS
)
DECAYS = {"embed": True, "blocks": {"wq": True, "wo": True, "norm": False}}


def only(tree, *paths):
    return trees.unflatten({path: trees.flatten(tree)[path] for path in paths})


def train(tx, params=PARAMS, grads=GRADS):
    """The parameters after one update for each of the gradients."""

    def step(carry, grad):
        params, opt_state = carry
        updates, opt_state = tx.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]


def hypers_of(cfg):
    return hyper_values(cfg, num_steps=TOTAL, d_model=D)


@functools.cache
def trained(cfg):
    """Parameters trained by one compiled program with every hyper-parameter traced."""
    hypers = {name: jnp.float32(value) for name, value in hypers_of(cfg).items()}
    return jax.jit(lambda hypers: train(make_tx(cfg, SPECS)(hypers)))(hypers)


def assert_trees_close(ours, theirs, rtol=2e-6, atol=2e-7):
    ours, theirs = trees.flatten(ours), trees.flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=rtol, atol=atol, err_msg=path)


# Against optax, which is given constants.


def by_optax(cfg, decays):
    """The transformation that optax has for `cfg`, all its numbers Python constants."""
    h = hypers_of(cfg)
    rate, adam_rate = (
        optax.warmup_cosine_decay_schedule(
            0.0, peak, int(h["warmup_steps"]), TOTAL, cfg.min_lr_ratio * peak
        )
        for peak in (h["peak_lr"], h["adam_lr"])
    )
    adamw = {key: h[key] for key in ("b1", "b2", "eps", "weight_decay")} | {"mask": decays}
    l2 = optax.add_decayed_weights(h["weight_decay"], decays)
    match cfg.name:
        case "adamw":
            return optax.adamw(rate, **adamw)
        case "adam":
            return optax.chain(l2, optax.adam(rate, h["b1"], h["b2"], h["eps"]))
        case "lion":
            return optax.lion(rate, h["b1"], h["b2"], weight_decay=h["weight_decay"], mask=decays)
        case "sgd":
            return optax.chain(l2, optax.sgd(rate, h["momentum"]))
        case "rmsprop":
            return optax.chain(l2, optax.rmsprop(rate, h["momentum"], h["eps"]))
        case "adagrad":
            return optax.chain(l2, optax.adagrad(rate, eps=h["eps"]))
        case "adadelta":
            return optax.chain(l2, optax.adadelta(rate, h["momentum"], h["eps"]))
        case "muon":
            matrix = optax.contrib.MuonDimensionNumbers
            blocks = {"wq": matrix(1, (2, 3)), "wo": matrix((1, 2), 3), "norm": None}
            muon = optax.contrib.muon(
                rate,
                beta=h["momentum"],
                weight_decay=h["weight_decay"],
                muon_weight_dimension_numbers={"embed": None, "blocks": blocks},
                consistent_rms=0.2,
            )
            labels = {"embed": "adamw", "blocks": {"wq": "muon", "wo": "muon", "norm": "adamw"}}
            return optax.partition({"muon": muon, "adamw": optax.adamw(adam_rate, **adamw)}, labels)


LANES = (
    {"peak_lr": 0.02, "adam_lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "warmup_steps": 2},
    {"peak_lr": 0.1, "adam_lr": 0.01, "weight_decay": 0.0, "momentum": 0.0, "warmup_steps": 0}
    | {"b1": 0.5, "b2": 0.7, "eps": 1e-2, "min_lr_ratio": 0.0},
)


@pytest.mark.parametrize("name", typing.get_args(Optimizer))
def test_a_population_with_traced_hypers_is_optax_with_constants(name):
    configs = [OptimConfig(name=name, clip_norm=None, **lane) for lane in LANES]
    stacked = {
        key: jnp.array([hypers_of(cfg)[key] for cfg in configs]) for key in hypers_of(configs[0])
    }
    # Two leaves tell as much as four where no leaf is a matrix, and compile in half the time.
    paths = trees.flatten(SPECS) if name == "muon" else ("embed", "blocks/norm")
    specs, params, grads, decays = (only(tree, *paths) for tree in (SPECS, PARAMS, GRADS, DECAYS))
    build = make_tx(configs[0], specs)
    population = jax.jit(jax.vmap(lambda hypers: train(build(hypers), params, grads)))(stacked)
    theirs = jax.jit(lambda: [train(by_optax(cfg, decays), params, grads) for cfg in configs])()
    for lane, expected in enumerate(theirs):
        ours = jax.tree.map(lambda x, lane=lane: x[lane], population)
        assert_trees_close(ours, expected, rtol=1e-5, atol=2e-6)


# Against torch and numpy float64, one compiled run for each config.

ADAMW = OptimConfig(peak_lr=0.05, warmup_steps=2, weight_decay=0.2, b2=0.9, eps=1e-3, clip_norm=2.5)
MUON = OptimConfig(name="muon", peak_lr=0.05, warmup_steps=2, weight_decay=0.2, clip_norm=None)
RATES = [0.05 * 0, 0.05 * 0.5] + [
    0.05 * (0.1 + 0.9 * (1 + np.cos(np.pi * n / 6)) / 2) for n in range(NUM_STEPS - 2)
]


def in_float64(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(tree).items()}


def test_adamw_with_clip_is_numpys():
    params, grads = in_float64(PARAMS), in_float64(GRADS)
    mu, nu = ({path: np.zeros_like(p) for path, p in params.items()} for _ in range(2))
    norms = []
    for n, rate in enumerate(RATES):
        norms.append(np.sqrt(sum((g[n] ** 2).sum() for g in grads.values())))
        scale = min(1.0, 2.5 / (norms[-1] + 1e-6))
        for path, p in params.items():
            g = scale * grads[path][n]
            mu[path] = 0.9 * mu[path] + 0.1 * g
            nu[path] = 0.9 * nu[path] + 0.1 * g**2
            root = np.sqrt(nu[path] / (1 - 0.9 ** (n + 1)))
            decay = 0.0 if path == "blocks/norm" else 0.2 * p
            params[path] = p - rate * (mu[path] / (1 - 0.9 ** (n + 1)) / (root + 1e-3) + decay)
    assert min(norms) > 2.5  # the clip was at work
    assert_trees_close(trained(ADAMW), trees.unflatten(params), rtol=1e-5, atol=1e-6)


def test_muon_is_numpys_layer_by_layer():
    params, grads = in_float64(PARAMS), in_float64(GRADS)
    ours = trees.flatten(trained(MUON))
    for path, inputs, outputs in [("blocks/wq", D, H * DH), ("blocks/wo", H * DH, D)]:
        for layer in range(N):
            p = params[path][layer].reshape(inputs, outputs)
            mu = np.zeros_like(p)
            for n, rate in enumerate(RATES):
                g = grads[path][n, layer].reshape(inputs, outputs)
                mu = 0.95 * mu + 0.05 * g
                x = 0.95 * mu / (1 - 0.95 ** (n + 2)) + 0.05 * g / (1 - 0.95 ** (n + 1))
                x /= np.linalg.norm(x)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                p = p - rate * (0.2 * np.sqrt(max(inputs, outputs)) * x + 0.2 * p)
            got = ours[path][layer].reshape(inputs, outputs)
            np.testing.assert_allclose(got, p, rtol=1e-4, atol=1e-5, err_msg=f"{path} {layer}")


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_torch_takes_the_same_steps(name):
    torch = pytest.importorskip("torch")
    cfg = ADAMW if name == "adamw" else OptimConfig(
        name=name, peak_lr=0.05, warmup_steps=2, weight_decay=0.2, b2=0.9, eps=1e-3, clip_norm=2.5
    )  # fmt: skip
    theirs = {p: torch.nn.Parameter(torch.tensor(x)) for p, x in in_float64(PARAMS).items()}
    groups = [
        {"params": [p for path, p in theirs.items() if path != "blocks/norm"], "weight_decay": 0.2},
        {"params": [theirs["blocks/norm"]], "weight_decay": 0.0},
    ]
    adam = {"betas": (0.9, 0.9), "eps": 1e-3}
    optimizer = {
        "adamw": lambda: torch.optim.AdamW(groups, **adam),
        "adam": lambda: torch.optim.Adam(groups, **adam),
        "sgd": lambda: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
    }[name]()
    for n, rate in enumerate(RATES):
        for path, grad in in_float64(GRADS).items():
            theirs[path].grad = torch.tensor(grad[n])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 2.5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    expected = trees.unflatten({path: p.detach().numpy() for path, p in theirs.items()})
    assert_trees_close(trained(cfg), expected, rtol=1e-5, atol=1e-6)


# Properties.


def test_one_compiled_step_serves_every_number():
    build, traces = make_tx(ADAMW, SPECS), []

    @jax.jit
    def step(hypers, opt_state):
        traces.append(1)
        return build(hypers).update(PARAMS, opt_state, PARAMS)

    for lane in LANES:
        hypers = {
            name: jnp.float32(value) for name, value in hypers_of(OptimConfig(**lane)).items()
        }
        step(hypers, build(hypers).init(PARAMS))
    assert len(traces) == 1


CLIP = jax.jit(
    lambda max_norm, grads: clip_by_global_norm(max_norm).update(grads, optax.EmptyState())[0]
)


@pytest.mark.parametrize("size", [1.0, 1e-6])  # at 1e-6 the added constant is seen
@pytest.mark.parametrize("factor", [0.1, 0.999999, 1.0, 1.5, 1e4])
def test_clip_is_numpys_below_and_above(factor, size):
    grads = jax.tree.map(lambda g: np.float32(size) * g, PARAMS)
    norm = np.sqrt(sum((g**2).sum() for g in in_float64(grads).values()))
    clipped = in_float64(CLIP(jnp.float32(norm / factor), grads))
    scale = min(1, norm / factor / (norm + 1e-6))
    for path, g in in_float64(grads).items():
        np.testing.assert_allclose(clipped[path], g * scale, rtol=1e-6)
        if scale == 1:
            np.testing.assert_array_equal(clipped[path], g)


def test_clip_of_nothing_is_nothing():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    clipped = CLIP(jnp.float32(1), zeros)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(clipped))


def test_muon_moves_along_the_singular_vectors_at_the_size_of_adamw():
    cfg = OptimConfig(name="muon", schedule="constant", peak_lr=1.0, weight_decay=0.0)
    tx = make_tx(cfg, SPECS)(hypers_of(cfg))
    update = jax.jit(lambda grads: tx.update(grads, tx.init(PARAMS), PARAMS)[0])
    updates = update(PARAMS)
    for path, inputs in [("wq", D), ("wo", H * DH)]:
        for layer in range(N):
            grad, step = (
                np.asarray(tree["blocks"][path][layer], np.float64).reshape(inputs, -1)
                for tree in (PARAMS, updates)
            )
            u, _, vt = np.linalg.svd(grad, full_matrices=False)
            values = -(u.T @ step @ vt.T) / (0.2 * np.sqrt(max(grad.shape)))
            np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-4)
            assert np.diag(values).min() > 0.6 and np.diag(values).max() < 1.3
            assert 0.1 < np.sqrt((step**2).mean()) < 0.25
    still = update(jax.tree.map(np.zeros_like, PARAMS))  # no gradient, no NaN and no step
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(still))


TRANSFORMER = {
    "embed": spec((V, D), "vocab embed"),
    "positions": spec((16, D), "positions embed"),
    "blocks": {
        "attn_norm": spec((N, D), "layers embed", num_in=0),
        "q_gain": spec((N, H, DH), "layers heads head_dim", num_in=0),
        "wq": spec((N, D, H, DH), "layers embed heads head_dim"),
        "wk": spec((N, D, H, DH), "layers embed kv_heads head_dim"),
        "wo": spec((N, H, DH, D), "layers heads head_dim embed", num_in=2),
        "w_up": spec((N, D, 12), "layers embed mlp"),
        "b_up": spec((N, 12), "layers mlp", num_in=0),
        "w_down": spec((N, 12, D), "layers mlp embed"),
    },
    "final_norm": spec((D,), "embed", num_in=0),
    "unembed": spec((D, V), "embed vocab"),
}


def test_which_path_muon_takes():
    assert optimizer_labels(TRANSFORMER) == {
        "blocks/attn_norm": "adamw",
        "blocks/b_up": "adamw",
        "blocks/q_gain": "adamw",
        "blocks/w_down": "muon",
        "blocks/w_up": "muon",
        "blocks/wk": "muon",
        "blocks/wo": "muon",
        "blocks/wq": "muon",
        "embed": "adamw",
        "final_norm": "adamw",
        "positions": "adamw",
        "unembed": "adamw",
    }


def test_which_axes_muon_orthogonalises():
    blocks = TRANSFORMER["blocks"]
    assert muon_dimension_numbers(blocks["wq"]) == ((1,), (2, 3))
    assert muon_dimension_numbers(blocks["wo"]) == ((1, 2), (3,))
    assert muon_dimension_numbers(blocks["w_up"]) == ((1,), (2,))
    assert muon_dimension_numbers(blocks["wq"].layer) == ((0,), (1, 2))


def test_which_path_decays():
    decaying = [path for path, decays in trees.flatten(decay_mask(TRANSFORMER)).items() if decays]
    matrices = ["w_down", "w_up", "wk", "wo", "wq"]
    assert decaying == [f"blocks/{name}" for name in matrices] + ["embed", "positions", "unembed"]
