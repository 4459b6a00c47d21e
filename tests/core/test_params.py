"""Initial values by path, their distribution, counts and checks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from scipy import stats

from jaxlm.core import trees
from jaxlm.core.params import (
    ParamSpec,
    abstract_params,
    check_params,
    count_params,
    init_params,
    ones,
    path_key,
    truncated_normal,
    xavier,
    zeros,
)

KEY = jax.random.key(3)


def key_bits(key, spec):
    """Shows which key it was given: where the law is about keys, no distribution is needed."""
    return jnp.full(spec.shape, jax.random.key_data(key)[-1] % 2**24, spec.dtype)


def spec(shape, axes, init=key_bits, **more):
    return ParamSpec(shape=shape, axes=axes, init=init, **more)


def jitted_init(specs):
    return quick_jit(lambda: init_params(KEY, specs))()


def specs_of(num_layers):
    return {
        "embed": spec((5, 4), ("vocab", "embed")),
        "blocks": {
            "wq": spec((num_layers, 4, 2, 3), ("layers", "embed", "heads", "head_dim")),
            "gain": spec((num_layers, 4), ("layers", "embed"), ones, num_in=0),
        },
        "head": spec((4, 5), ("embed", "vocab")),
    }


def test_adding_a_weight_leaves_the_initial_values_of_the_others_alone():
    before = trees.flatten(init_params(KEY, specs_of(2)))
    more = specs_of(2)
    more["blocks"]["a_first"] = spec((2, 4, 4), ("layers", "embed", "mlp"))
    more["zz_last"] = spec((4,), ("embed",), zeros, num_in=0)
    after = trees.flatten(init_params(KEY, more))
    assert set(after) - set(before) == {"blocks/a_first", "zz_last"}
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_the_first_layers_of_a_deeper_model_start_as_those_of_a_shallower_one():
    shallow, deep = (init_params(KEY, specs_of(n)) for n in (2, 5))
    np.testing.assert_array_equal(deep["blocks"]["wq"][:2], shallow["blocks"]["wq"])
    np.testing.assert_array_equal(deep["head"], shallow["head"])


def test_every_layer_and_every_path_draws_numbers_of_its_own():
    same_shape = {
        "a": spec((3, 4, 4), ("layers", "x", "y")),
        "b": spec((3, 4, 4), ("layers", "x", "y")),
        "deep": {"a": spec((3, 4, 4), ("layers", "x", "y"))},
    }
    drawn = np.stack(list(trees.flatten(init_params(KEY, same_shape)).values())).reshape(9, 16)
    assert len({tuple(row) for row in drawn}) == 9


def test_a_layer_of_a_stack_is_drawn_from_the_key_of_its_path_and_index():
    wq = specs_of(3)["blocks"]["wq"]
    key = jax.random.fold_in(path_key(KEY, "blocks/wq"), 2)
    expected = wq.init(key, wq.layer)
    np.testing.assert_array_equal(init_params(KEY, specs_of(3))["blocks"]["wq"][2], expected)


def test_the_key_decides_the_values():
    first, again, other = (init_params(jax.random.key(s), specs_of(1))["head"] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# (shape, axes, num_in, fan_in, fan_out, scale); the layers axis is no fan
FANS = [
    ((300, 200), ("embed", "mlp"), 1, 300, 200, 0.5),
    ((2, 64, 8, 60), ("layers", "embed", "heads", "head_dim"), 1, 64, 480, 1.0),
    ((2, 8, 60, 64), ("layers", "heads", "head_dim", "embed"), 2, 480, 64, 1.0),
]


@pytest.mark.parametrize(("shape", "axes", "num_in", "fan_in", "fan_out", "scale"), FANS)
def test_xavier_has_variance_two_over_the_fans_before_a_cut_at_three_sigma(
    shape, axes, num_in, fan_in, fan_out, scale
):
    declared = spec(shape, axes, xavier(scale), num_in=num_in)
    assert declared.fans == (fan_in, fan_out)
    w = np.asarray(jitted_init({"w": declared})["w"], np.float64)
    sigma = scale * math.sqrt(2 / (fan_in + fan_out))
    law = stats.truncnorm(-3, 3, scale=sigma)
    assert np.abs(w).max() <= 3 * sigma * (1 + 1e-6)
    assert np.abs(w).max() > 2.9 * sigma
    # about 60,000 draws: four standard errors of the mean and of the standard deviation
    assert abs(w.mean()) < 4 * sigma / math.sqrt(w.size)
    assert abs(w.std() / law.std() - 1) < 4 / math.sqrt(2 * w.size)
    assert stats.kstest(w.ravel(), law.cdf).pvalue > 1e-3


def test_truncated_normal_has_its_sigma_before_the_cut():
    w = np.asarray(
        jitted_init({"w": spec((200, 200), ("vocab", "embed"), truncated_normal(0.02))})["w"]
    )
    assert stats.kstest(w.ravel(), stats.truncnorm(-3, 3, scale=0.02).cdf).pvalue > 1e-3
    assert w.dtype == np.float32


def test_a_scale_of_zero_gives_zeros():
    w = init_params(KEY, {"w": spec((4, 4), ("x", "y"), xavier(0.0))})["w"]
    np.testing.assert_array_equal(w, np.zeros((4, 4)))


def test_abstract_params_have_the_shapes_and_dtypes_of_the_initial_values():
    abstract, real = abstract_params(specs_of(2)), init_params(KEY, specs_of(2))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )


def test_a_dtype_of_its_own_is_kept():
    half = spec((4, 4), ("x", "y"), dtype=jnp.bfloat16)
    assert init_params(KEY, {"w": half})["w"].dtype == jnp.bfloat16


def test_the_count_is_the_sum_of_the_sizes():
    assert count_params(specs_of(3)) == 5 * 4 + 3 * 4 * 6 + 3 * 4 + 4 * 5
    assert count_params({}) == 0


@pytest.mark.parametrize(
    ("shape", "axes", "num_in", "kind"),
    [
        ((5, 4), ("vocab", "embed"), 1, "lookup"),
        ((5, 4), ("positions", "embed"), 1, "lookup"),
        ((4, 5), ("embed", "vocab"), 1, "matrix"),
        ((2, 4, 6), ("layers", "embed", "mlp"), 1, "matrix"),
        ((2, 3, 2, 4), ("layers", "heads", "head_dim", "embed"), 2, "matrix"),
        ((2, 4), ("layers", "embed"), 0, "vector"),
        ((2, 3, 2), ("layers", "heads", "head_dim"), 0, "vector"),
        ((4,), ("embed",), 0, "vector"),
    ],
)
def test_a_weight_is_a_lookup_a_matrix_or_a_vector(shape, axes, num_in, kind):
    assert spec(shape, axes, num_in=num_in).kind == kind


def test_shape_and_axes_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        spec((2, 3), ("embed",))


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec((2,), ("x",)).shape = (3,)


def test_check_params_takes_what_init_made():
    check_params(init_params(KEY, specs_of(2)), specs_of(2))


def test_check_params_names_what_is_missing_extra_or_of_another_shape():
    params = init_params(KEY, specs_of(2))
    params["blocks"].pop("gain")
    params["extra"] = jnp.zeros(1)
    params["head"] = jnp.zeros((4, 6))
    with pytest.raises(ValueError) as refused:
        check_params(params, specs_of(2))
    assert str(refused.value) == (
        "blocks/gain: missing, expected shape (2, 4); extra: not a weight of this model; "
        "head: shape (4, 6), expected (4, 5)"
    )


def test_check_params_shows_three_problems_and_counts_the_rest():
    with pytest.raises(ValueError, match=r"\(and 1 more\)$"):
        check_params({}, specs_of(2))
