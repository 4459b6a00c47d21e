import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.metrics import Mean


@pytest.mark.parametrize("sizes", [(4, 4), (1, 7), (0, 3), (2, 0, 5)])
def test_parts_of_unequal_size_merge_into_the_mean_of_all(sizes):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=n) for n in sizes]
    means = [Mean(jnp.float32(p.sum()), jnp.float32(p.size)) for p in parts]
    merged = means[0]
    for mean in means[1:]:
        merged = jax.tree.map(jnp.add, merged, mean)
    # float32 holds seven digits of these sums of at most seven numbers
    np.testing.assert_allclose(merged.compute(), np.concatenate(parts).mean(), rtol=1e-5)


def test_the_mean_of_nothing_is_nan():
    assert np.isnan(Mean(jnp.float32(0), jnp.float32(0)).compute())


def test_means_stack_along_a_leading_axis():
    stacked = Mean(jnp.array([2.0, 9.0]), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(stacked.compute(), [2.0, 3.0])
