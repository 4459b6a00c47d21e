"""The MLP: Bengio's equations in numpy, batch norm and its folding, the first loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from drawn import draw_params

from jaxlm.core.config import with_traced
from jaxlm.core.params import init_params
from jaxlm.models import mlp
from jaxlm.models.mlp import MlpConfig
from jaxlm.nn.cross_entropy import cross_entropy

V, W, E, D, B, S = 9, 3, 4, 6, 2, 5
IDS = np.random.default_rng(0).integers(V, size=(B, S))


def draw(**fields):
    cfg = MlpConfig(vocab_size=V, window=W, d_embed=E, d_model=D, **fields)
    model = mlp.build(cfg)
    return cfg, model, draw_params(model.specs)


def inputs(params):
    """float64[B, S, W * E]: the embeddings of the last W tokens, oldest first."""
    table = np.vstack([params["embed"], params["start"]]).astype(np.float64)
    padded = np.concatenate([np.full((B, W - 1), V), IDS], axis=1)
    rows = [[table[padded[b, t : t + W]].ravel() for t in range(S)] for b in range(B)]
    return np.array(rows)


@pytest.mark.parametrize("direct", [False, True])
def test_logits_are_those_of_the_paper(direct):
    """Equation 1: y = b + W x + U tanh(d + H x)."""
    _, model, params = draw(direct=direct)
    x = inputs(params)
    h = np.tanh(x @ np.reshape(params["kernel"], (W * E, D)) + params["bias"])
    want = h @ params["unembed"] + params["unembed_bias"]
    if direct:
        want += x @ np.reshape(params["direct"], (W * E, V))
    np.testing.assert_allclose(quick_jit(model.forward)(params, IDS), want, atol=1e-5)


def test_batch_norm_in_training_is_that_of_torch():
    torch = pytest.importorskip("torch")
    cfg, model, params = draw(batch_norm=True)
    norm = torch.nn.BatchNorm1d(D, eps=mlp.EPS).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(np.asarray(params["gain"])))
        norm.bias.copy_(torch.tensor(np.asarray(params["shift"])))
        y = inputs(params) @ np.reshape(np.float64(params["kernel"]), (W * E, D))
        want = torch.tanh(norm(torch.tensor(y.reshape(-1, D)))).numpy()
    h, carry = quick_jit(model.train_hidden)(params, IDS, model.init_carry(B))
    np.testing.assert_allclose(np.reshape(h, (-1, D)), want, atol=1e-5)
    np.testing.assert_allclose(carry["mean"], y.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(carry["var"], y.var((0, 1)), atol=1e-5)


def test_folding_leaves_what_the_averages_normalise():
    """Against the normalisation written out, with averages of many batches."""
    cfg, model, params = draw(batch_norm=True)
    carry, train = model.init_carry(B), quick_jit(model.train_hidden)
    for seed in range(5):
        _, carry = train(params, np.random.default_rng(seed).integers(V, size=(B, S)), carry)
    y = inputs(params) @ np.reshape(np.float64(params["kernel"]), (W * E, D))
    mean, var = (np.asarray(carry[name], np.float64) for name in ("mean", "var"))
    y = params["gain"] * (y - mean) / np.sqrt(var + mlp.EPS) + params["shift"]
    want = np.tanh(y) @ params["unembed"] + params["unembed_bias"]
    settled = model.settle(params, carry)
    assert set(settled) == set(mlp.param_specs(MlpConfig(vocab_size=V)))
    np.testing.assert_allclose(quick_jit(model.forward)(settled, IDS), want, atol=1e-5)
    with pytest.raises(ValueError, match="settle them first"):
        model.forward(params, IDS)


def test_averages_are_plain_at_first_and_then_follow():
    _, model, params = draw(batch_norm=True)
    train, carry, means = quick_jit(model.train_hidden), model.init_carry(B), []
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(V, size=(B, S))
        _, carry = train(params, ids, carry)
        _, alone = train(params, ids, model.init_carry(B))
        means.append(alone["mean"])
    np.testing.assert_allclose(carry["mean"], np.mean(means, axis=0), atol=1e-5)
    late = {**carry, "count": jnp.float32(10_000)}
    _, moved = train(params, ids, late)
    want = carry["mean"] + (alone["mean"] - carry["mean"]) / mlp.AVERAGED
    np.testing.assert_allclose(moved["mean"], want, atol=1e-5)


@pytest.mark.parametrize(("output_init", "atol"), [(0.0, 1e-4), (0.01, 0.01)])
def test_the_first_loss_is_that_of_the_uniform_distribution(output_init, atol):
    cfg = MlpConfig(vocab_size=27, d_embed=10, d_model=200, window=3, output_init=output_init)
    ids = np.random.default_rng(0).integers(27, size=(2, 32, 20))

    @quick_jit
    def first_loss(output_init):
        specs = mlp.param_specs(with_traced(cfg, {"output_init": output_init}))
        params = init_params(jax.random.key(0), specs)
        return jnp.mean(cross_entropy(mlp.build(cfg).forward(params, ids[0]), ids[1])[0])

    assert first_loss(output_init) == pytest.approx(np.log(27), abs=atol)
    assert first_loss(3.0) > np.log(27) + 0.5
