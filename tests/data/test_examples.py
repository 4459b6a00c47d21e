"""Which examples a step reads."""

import numpy as np

from jaxlm.data.examples import examples_at


def test_each_epoch_visits_every_example_once_in_an_order_of_its_own():
    seen = np.concatenate([examples_at(10, 3, step, 4) for step in range(10)])
    epochs = seen.reshape(4, 10)
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_it_is_a_function_of_seed_and_step():
    np.testing.assert_array_equal(examples_at(100, 1, 7, 8), examples_at(100, 1, 7, 8))
    assert not np.array_equal(examples_at(100, 1, 7, 8), examples_at(100, 2, 7, 8))
    assert not np.array_equal(examples_at(100, 1, 7, 8), examples_at(100, 1, 8, 8))
