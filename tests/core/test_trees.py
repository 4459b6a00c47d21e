import pytest

from jaxlm.core import trees

TREE = {"embed": 1, "blocks": {"wq": 2, "attn": {"gain": 3}}, "a": 4}


def test_a_leaf_is_named_by_its_path_in_sorted_order():
    assert list(trees.flatten(TREE).items()) == [
        ("a", 4),
        ("blocks/attn/gain", 3),
        ("blocks/wq", 2),
        ("embed", 1),
    ]


@pytest.mark.parametrize("tree", [{}, {"a": 0}, TREE, {"a": {"b": {"c": {"d": None}}}}])
def test_unflatten_inverts_flatten(tree):
    assert trees.unflatten(trees.flatten(tree)) == tree


def test_the_order_of_insertion_does_not_show():
    backwards = {name: TREE[name] for name in reversed(TREE)}
    assert list(trees.flatten(backwards)) == list(trees.flatten(TREE))


def test_map_with_path_hands_over_the_path_and_the_leaves_of_every_tree():
    got = trees.map_with_path(
        lambda p, x, y: (p, x, y), {"a": 1, "b": {"c": 2}}, {"b": {"c": 4}, "a": 3}
    )
    assert got == {"a": ("a", 1, 3), "b": {"c": ("b/c", 2, 4)}}


def test_map_with_path_refuses_trees_of_another_structure():
    with pytest.raises(KeyError):
        trees.map_with_path(lambda p, x, y: x, {"a": 1}, {"b": 1})
