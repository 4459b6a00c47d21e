import itertools

import pytest

from jaxlm.core.config import ConfigError
from jaxlm.core.sweep import axes_of, axis, chain, describe, product, varied_fields, zipped


def test_a_product_is_every_combination_the_last_axis_fastest():
    points = product(axis("a", 1, 2), axis("b.c", "x", "y", "z"))
    want = [{"a": a, "b.c": c} for a, c in itertools.product((1, 2), "xyz")]
    assert points == want


def test_zipped_goes_side_by_side_and_chain_one_after_the_other():
    pairs = zipped(axis("d", 64, 128), axis("h", 2, 4))
    assert pairs == [{"d": 64, "h": 2}, {"d": 128, "h": 4}]
    assert chain(pairs, axis("d", 256)) == [*pairs, {"d": 256}]
    assert len(product(pairs, axis("seed", 0, 1, 2))) == 6


def test_axes_are_fields_that_change_together():
    points = product(zipped(axis("d", 64, 128), axis("h", 2, 4)), axis("seed", 0, 1), axis("c", 5))
    assert varied_fields(points) == ["d", "h", "seed"]
    assert axes_of(points) == [("d", "h"), ("seed",)]
    assert describe(points[0]) == "d=64 h=2 seed=0 c=5"
    # A field that is set in one part of a chain only is varied too.
    assert varied_fields(chain(axis("d", 1), axis("e", 1))) == ["d", "e"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: axis("optim.peak_lr"), 'axis("optim.peak_lr"): empty'),
        (lambda: axis("seed", 1, 2, 1), "1 is given twice"),
        (lambda: product(axis("a", 1), axis("a", 2)), "product: two axes set a"),
        (lambda: zipped(axis("a", 1), axis("a", 2)), "zipped: two axes set a"),
        (lambda: zipped(axis("a", 1), axis("b", 2, 3)), "unequal length (a: 1, b: 2)"),
        (lambda: product(axis("a", 1), []), "an empty axis"),
        (lambda: product(), "an empty axis"),
        (lambda: chain(axis("a", 1), axis("a", 1)), "a=1 comes twice"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
