"""LoRA: the sum that is merged, the gradient that reaches adapters, ranks as masks, and the counts.

Oracles: float64 sums in numpy, the product of two paths, and the chain rule from the gradient of
the whole matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlm.core import trees
from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.core.params import ParamSpec, abstract_params, count_params
from jaxlm.models import lora, transformer
from jaxlm.models.lora import AdaptedWeight, LoraConfig
from jaxlm.models.transformer import TransformerConfig
from jaxlm.objectives import next_token
from jaxlm.optim.config import OptimConfig
from jaxlm.optim.config import hyper_values as optim_hypers
from jaxlm.optim.optimizers import make_tx
from jaxlm.train.state import TrainState, init_state
from jaxlm.train.step import make_train_step

ALL = LoraConfig(rank=3, alpha=6.0, targets=("all",))
PRODUCTS = {  # x times each matrix, and the dimensions that its product sums over
    "blocks/wq": "bd,dhe->bhe",
    "blocks/wk": "bd,dhe->bhe",
    "blocks/wv": "bd,dhe->bhe",
    "blocks/wo": "bhe,hed->bd",
    "blocks/w_up": "bd,df->bf",
    "blocks/w_gate": "bd,df->bf",
    "blocks/w_down": "bf,fd->bd",
}


@pytest.fixture(scope="module")
def cfg(small_cfg):
    """Grouped heads, so that no two kinds of matrix have one shape."""
    return dataclasses.replace(small_cfg, num_kv_heads=2)


@pytest.fixture(scope="module")
def adapters(cfg):
    """Adapters of rank 3 on every matrix, B drawn too, as after some training."""
    return random_adapters(cfg, ALL)


def random_adapters(cfg, lora_cfg, seed=1):
    rng = np.random.default_rng(seed)
    return trees.map_with_path(
        lambda _, spec: jnp.float32(0.3 * rng.normal(size=spec.shape)), specs_of(cfg, lora_cfg)
    )


def specs_of(cfg, lora_cfg):
    return lora.adapter_specs(transformer.param_specs(cfg), lora_cfg)


def tokens_of(cfg, rows=2):
    return np.random.default_rng(5).integers(cfg.vocab_size, size=(rows, cfg.context_length))


def test_fresh_adapters_leave_every_bit_of_the_logits(cfg, params_of, adapters, forward_of):
    base, tokens = params_of(cfg), tokens_of(cfg)
    fresh = {
        path: x if path.endswith(lora.A) else jnp.zeros_like(x)
        for path, x in trees.flatten(adapters).items()
    }
    fresh = trees.unflatten(fresh)
    want = np.asarray(forward_of(cfg)(base, tokens))
    for weights in (
        lora.merge(base, fresh, lora.hyper_values(ALL), ALL.scaling),
        lora.attach(base, fresh, lora.hyper_values(ALL), ALL.scaling),
    ):
        np.testing.assert_array_equal(forward_of(cfg)(weights, tokens), want)


@pytest.mark.parametrize("scaling", ["alpha_over_r", "alpha_over_sqrt_r"])
def test_merged_weights_are_the_two_paths_on_100_inputs(cfg, params_of, adapters, scaling):
    base = trees.flatten(params_of(cfg))
    merged = trees.flatten(lora.merge(params_of(cfg), adapters, lora.hyper_values(ALL), scaling))
    scale = {"alpha_over_r": 6 / 3, "alpha_over_sqrt_r": 6 / np.sqrt(3)}[scaling]
    rng = np.random.default_rng(2)
    assert {path for path in base if merged[path] is not base[path]} == set(PRODUCTS)
    for path, product in PRODUCTS.items():
        sums = product.split(",")[1].partition("->")[0]
        outs = [letter for letter in product.partition("->")[2] if letter != "b"]
        ins = "".join(letter for letter in sums if letter not in outs)
        for layer in range(cfg.num_layers):
            w, a, b = (
                np.asarray(leaf[layer], np.float64)
                for leaf in (base[path], *(at(adapters, path)[name] for name in (lora.A, lora.B)))
            )
            x = rng.normal(size=(100, *w.shape[: len(ins)]))
            low = np.einsum(f"b{ins},{ins}r->br", x, a)
            want = np.einsum(product, x, w) + scale * np.tensordot(low, b, axes=1)
            got = np.einsum(product, np.float32(x), np.asarray(merged[path][layer]))
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


def test_adapters_get_the_gradient_that_the_chain_rule_gives(cfg, params_of, adapters):
    """dA = s G B^T and dB = s A^T G, G the gradient of the whole matrix in a plain model."""
    base, tokens, hypers = params_of(cfg), tokens_of(cfg), lora.hyper_values(ALL)

    def loss(weights):
        return jnp.mean(jnp.square(transformer.forward(weights, tokens, cfg)))

    def adapted(x):
        return loss(lora.attach(base, x, hypers, ALL.scaling))

    value, got = jax.jit(jax.value_and_grad(adapted))(adapters)
    merged = lora.merge(base, adapters, hypers, ALL.scaling)
    plain_value, whole = jax.jit(jax.value_and_grad(loss))(merged)
    np.testing.assert_allclose(value, plain_value, rtol=1e-6)
    for path, spec in lora.target_specs(transformer.param_specs(cfg), ALL.targets).items():
        inputs, outputs = spec.fans
        for layer in range(cfg.num_layers):
            g = np.asarray(at(whole, path)[layer], np.float64).reshape(inputs, outputs)
            a = np.asarray(at(adapters, path)[lora.A][layer], np.float64).reshape(inputs, 3)
            b = np.asarray(at(adapters, path)[lora.B][layer], np.float64).reshape(3, outputs)
            for name, want in ((lora.A, 2 * g @ b.T), (lora.B, 2 * a.T @ g)):
                have = np.asarray(at(got, path)[name][layer]).reshape(want.shape)
                np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-6 * abs(want).max())


def test_adapters_get_the_gradient_of_an_explicit_two_path_layer():
    rng = np.random.default_rng(0)
    x, w, a, b = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((7, 5), (1, 5, 2, 3), (1, 5, 4), (1, 4, 2, 3))
    )
    hypers = {"lora_alpha": 10.0, "lora_rank": 4.0}

    def merged(pair):
        weights = lora.merge({"w": w}, {"w": pair}, hypers, "alpha_over_sqrt_r")
        return jnp.sum(jnp.sin(jnp.einsum("bd,dhe->bhe", x, weights["w"][0])))

    def two_paths(pair):
        low = jnp.einsum("br,rhe->bhe", x @ pair[lora.A][0], pair[lora.B][0])
        return jnp.sum(jnp.sin(jnp.einsum("bd,dhe->bhe", x, w[0]) + 5.0 * low))

    pair = {lora.A: a, lora.B: b}
    got, want = jax.grad(merged)(pair), jax.grad(two_paths)(pair)
    for name in pair:
        np.testing.assert_allclose(got[name], want[name], rtol=2e-4, atol=1e-4)


def test_with_full_remat_one_layer_is_merged_at_a_time():
    """Merged copies of all layers, or their whole gradients, would take `targets` bytes each."""
    cfg = TransformerConfig(
        vocab_size=16, context_length=8, num_layers=8, d_model=64, num_heads=2,
        activation="relu", remat="full",
    )  # fmt: skip
    specs, lora_cfg = transformer.param_specs(cfg), LoraConfig(rank=1, targets=("all",))
    targets = sum(4 * s.size for s in lora.target_specs(specs, lora_cfg.targets).values())

    def loss(adapters, base, tokens):
        weights = lora.attach(base, adapters, {"lora_alpha": 1.0}, lora_cfg.scaling)
        return jnp.sum(transformer.forward(weights, tokens, cfg))

    shapes = [abstract_params(s) for s in (specs_of(cfg, lora_cfg), specs)]
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(*shapes, tokens).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < targets / 2


def trained(cfg, base, batches, lora_cfg, lane_hypers=()):
    """20 steps from one seed; with `lane_hypers`, one lane of a population for each of them."""
    model, specs = transformer.build(cfg), specs_of(cfg, lora_cfg)
    optim = OptimConfig(peak_lr=0.02, schedule="constant", weight_decay=0.1)
    build_tx = make_tx(optim, specs)
    hypers = optim_hypers(optim, num_steps=20, d_model=cfg.d_model) | lora.hyper_values(lora_cfg)
    loss_fn = next_token.make_loss_fn(model, token_bytes=np.ones(cfg.vocab_size, np.int32))
    step = make_train_step(lora.adapted_loss(loss_fn, lora_cfg.scaling), build_tx)

    def whole(changes, base):
        state = init_state(3, specs, hypers | changes, build_tx, frozen=base)
        state, metrics = jax.lax.scan(step, state, batches)
        return state, metrics["loss"].compute(), metrics["grad_norm"].compute()

    if not lane_hypers:
        return jax.jit(whole)({}, base)
    lanes = {name: jnp.asarray([h[name] for h in lane_hypers]) for name in lane_hypers[0]}
    out = TrainState(
        step=0, params=0, frozen=None, carry=0, hypers=0, opt_state=0, key=0
    )  # the base is one for all lanes
    return jax.jit(jax.vmap(whole, in_axes=(0, None), out_axes=(out, 0, 0)))(lanes, base)


WIDE = LoraConfig(rank=8, alpha=16.0, targets=("wq", "wo"))
NARROW = dataclasses.replace(WIDE, rank=2)


@pytest.fixture(scope="module")
def batches(cfg, make_batch):
    """20 times one batch, which can be learnt."""
    batch = make_batch(0, np.ones((4, cfg.context_length)))
    return jax.tree.map(lambda x: np.stack([x] * 20), batch)


@pytest.fixture(scope="module")
def solo(cfg, params_of, batches):
    """The run of rank 2: (state, losses, gradient norms)."""
    return trained(cfg, params_of(cfg), batches, NARROW)


def test_a_masked_lane_is_the_solo_run_of_its_rank(cfg, params_of, batches, solo):
    """R = 8 masked to 2, a lane of a population, against R = 2: 20 AdamW steps each.

    The sums over columns have zeros added to them and another order: a few float32 roundings a
    step, which Adam's division carries on. 1e-4 of the largest value holds them with room; a
    wrong rank in the scale, or other columns, is off by parts in ten.
    """
    lanes = [{"lora_rank": 8.0}, {"lora_rank": 2.0}]
    population, losses, norms = trained(cfg, params_of(cfg), batches, WIDE, lanes)
    state, solo_losses, solo_norms = solo
    assert solo_losses[-1] < solo_losses[0] - 0.1  # it learns: there is something to compare
    assert abs(losses[0] - losses[1])[-1] > 0.01  # and rank matters
    np.testing.assert_allclose(losses[1], solo_losses, rtol=1e-5)
    np.testing.assert_allclose(norms[1], solo_norms, rtol=1e-4)
    for path, want in trees.flatten(state.params).items():
        got = trees.flatten(population.params)[path][1]
        inside = got[..., :2] if path.endswith(lora.A) else got[:, :2]
        assert abs(want).max() > 0.01, path
        np.testing.assert_allclose(inside, want, atol=1e-4 * abs(want).max(), err_msg=path)
        if path.endswith(lora.B):
            np.testing.assert_array_equal(got[:, 2:], 0)


def test_training_leaves_the_base_as_it_was(cfg, params_of, solo):
    """`params_of` draws the base anew in numpy, so a change in place would show."""
    state, losses, _ = solo
    assert losses[-1] < losses[0]
    assert trees.flatten(state.frozen).keys() == trees.flatten(params_of(cfg)).keys()
    for path, want in trees.flatten(params_of(cfg)).items():
        assert trees.flatten(state.frozen)[path].tobytes() == want.tobytes(), path
    assert set(trees.flatten(state.params)) == set(trees.flatten(specs_of(cfg, NARROW)))


@pytest.mark.parametrize(
    ("scaling", "want"), [("alpha_over_r", 16 / 4), ("alpha_over_sqrt_r", 16 / 2)]
)
def test_the_scale_follows_a_traced_alpha_and_rank(scaling, want):
    base = {"w": jnp.zeros((1, 2, 3))}
    pair = {"w": {lora.A: jnp.ones((1, 2, 6)), lora.B: jnp.ones((1, 6, 3))}}
    merge = jax.jit(lora.merge, static_argnames="scaling")
    hypers = {"lora_alpha": jnp.float32(16), "lora_rank": jnp.float32(4)}
    # 4 of 6 columns count, each adds 1
    np.testing.assert_allclose(merge(base, pair, hypers, scaling=scaling)["w"], 4 * want)
    whole = {"lora_alpha": 16.0}  # without a rank all six do
    want = 16 / 6 if scaling == "alpha_over_r" else 16 / np.sqrt(6)
    np.testing.assert_allclose(merge(base, pair, whole, scaling=scaling)["w"], 6 * want, rtol=1e-6)


def test_the_sum_is_made_before_it_is_rounded():
    """1 + 2^-8 is 1 in bfloat16, whose next number is 1 + 2^-7; with 2^-9 more it is that one."""
    weight = AdaptedWeight(
        base=jnp.float32([[1 + 2**-8]]),
        a=jnp.float32([[2**-9]]),
        b=jnp.float32([[0.5]]),
        scale=jnp.float32(2.0),
    )
    got = jnp.asarray(weight.astype("bfloat16"))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(got), [[1 + 2**-7]])
    assert jnp.asarray(weight).dtype == jnp.float32


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        # width 16, 4 heads of 4, 2 key/value heads, d_ff 48, 2 layers, rank 3
        (("wq", "wv"), 2 * 3 * ((16 + 16) + (16 + 8))),
        (("wq", "wk", "wv", "wo"), 2 * 3 * ((16 + 16) + 2 * (16 + 8) + (16 + 16))),
        (("w_down",), 2 * 3 * (48 + 16)),
        (("all",), 2 * 3 * ((16 + 16) + 2 * (16 + 8) + (16 + 16) + 3 * (16 + 48))),
    ],
)
def test_counts_by_hand(cfg, targets, count):
    assert count_params(specs_of(cfg, LoraConfig(rank=3, targets=targets))) == count


def test_shapes_come_from_what_a_spec_calls_inputs(cfg):
    specs = trees.flatten(specs_of(cfg, LoraConfig(rank=3, targets=("wo", "wv"))))
    assert {path: (spec.shape, spec.axes) for path, spec in specs.items()} == {
        "blocks/wo/lora_a": ((2, 4, 4, 3), ("layers", "heads", "head_dim", "lora")),
        "blocks/wo/lora_b": ((2, 3, 16), ("layers", "lora", "embed")),
        "blocks/wv/lora_a": ((2, 16, 3), ("layers", "embed", "lora")),
        "blocks/wv/lora_b": ((2, 3, 2, 4), ("layers", "lora", "kv_heads", "head_dim")),
    }
    assert [spec.fans for spec in specs.values()] == [(16, 3), (3, 16), (16, 3), (3, 8)]
    assert all(spec.kind == "matrix" for spec in specs.values())  # they decay, and muon may


def test_a_column_does_not_depend_on_how_many_there_are():
    spec = ParamSpec(shape=(2, 3, 2), axes=("heads", "head_dim", "lora"), init=None, num_in=2)
    wide = dataclasses.replace(spec, shape=(2, 3, 8))
    two, eight = jax.jit(
        lambda key: (lora.uniform_columns(key, spec), lora.uniform_columns(key, wide))
    )(jax.random.key(0))
    np.testing.assert_array_equal(two, eight[..., :2])
    assert len(np.unique(eight)) == eight.size


def test_a_is_drawn_as_the_authors_and_peft_draw_it():
    spec = ParamSpec(
        shape=(8, 32, 50),
        axes=("heads", "head_dim", "lora"),
        init=lora.uniform_columns,
        num_in=2,
    )
    draws = np.asarray(spec.init(jax.random.key(0), spec)).ravel()
    bound = np.sqrt(6 / ((1 + np.sqrt(5) ** 2) * 8 * 32))  # kaiming_uniform_, a = sqrt(5)
    assert abs(draws).max() <= bound
    assert stats.kstest(draws, stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rank": "0"}, "rank=0 must be at least 1"),
        ({"alpha": "0"}, "alpha=0.0 must be positive"),
        ({"targets": ""}, "targets must name at least one matrix"),
        ({"scaling": "alpha"}, "expected one of alpha_over_r, alpha_over_sqrt_r"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(LoraConfig(), overrides)


@pytest.mark.parametrize("target", ["wz", "embed", "attn_norm", "unembed"])
def test_only_stacked_matrices_can_be_targets(cfg, target):
    with pytest.raises(ConfigError, match=rf"^--config.lora.targets=wq,{target}: .*'{target}'"):
        specs_of(cfg, LoraConfig(rank=2, targets=("wq", target)))


def test_no_rank_is_no_adapters():
    assert lora.hyper_values(LoraConfig()) == {}
    assert lora.hyper_values(ALL) == {"lora_alpha": 6.0, "lora_rank": 3.0}
