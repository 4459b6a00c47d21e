"""A field that is one of several configs, told apart by `kind`."""

import dataclasses
from typing import Literal

import pytest

from jaxlm.core.config import ConfigError, apply_overrides, diff, flatten, from_dict, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attending:
    kind: Literal["attending"] = "attending"
    width: int = 8
    num_heads: int = 2
    window: int | None = None

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} must be a multiple of num_heads={self.num_heads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    kind: Literal["gru", "lstm"] = "gru"
    width: int = 16
    window: int = 1
    reset: str = "after"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    model: Attending | Cell = Attending()
    seed: int = 0


def test_a_kind_given_anew_starts_from_its_own_defaults():
    assert apply_overrides(Run(), {"model.kind": "lstm"}).model == Cell(kind="lstm")
    both = {"model.reset": "before", "model.kind": "gru"}
    assert apply_overrides(Run(), both).model == Cell(reset="before")
    back = apply_overrides(Run(model=Cell(width=4)), {"model.kind": "attending"})
    assert back.model == Attending(width=4)


def test_what_was_set_before_is_kept_where_both_have_it():
    before = Run(model=Attending(width=6, num_heads=3))
    assert apply_overrides(before, {"model.kind": "gru"}).model == Cell(width=6)
    assert apply_overrides(before, {"model.kind": "gru", "model.width": "5"}).model.width == 5
    assert apply_overrides(Run(model=Cell(window=3)), {"model.kind": "attending"}).model.window == 3


def test_a_value_that_the_other_cannot_have_is_dropped():
    before = Run(model=Cell(width=3))
    assert apply_overrides(before, {"model.kind": "attending", "model.num_heads": 3}).model == (
        Attending(width=3, num_heads=3)
    )
    texts = dataclasses.make_dataclass(
        "Texts", [("kind", Literal["texts"], "texts"), ("width", str, "")], frozen=True
    )
    both = dataclasses.make_dataclass("Both", [("model", Cell | texts, Cell(width=3))], frozen=True)
    assert apply_overrides(both(), {"model.kind": "texts"}).model == texts()


def test_another_kind_of_one_class_keeps_all_else():
    before = Run(model=Cell(width=3, reset="before"))
    after = apply_overrides(before, {"model.kind": "lstm"})
    assert after.model == Cell(kind="lstm", width=3, reset="before")
    assert diff(before, after) == ["model.kind: gru -> lstm"]


def test_the_same_kind_again_changes_nothing():
    before = Run(model=Attending(width=4))
    assert apply_overrides(before, {"model.kind": "attending"}) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.kind": "gru", "model.num_heads": "4"},
            "--config.model.num_heads=4: Cell has no field 'num_heads' "
            "(fields: kind, width, window, reset)",
        ),
        (
            {"model.kind": "grü"},
            "--config.model.kind=grü: expected one of attending, gru, lstm",
        ),
        ({"model.width": "7"}, "--config.model.width=7: width=7 must be a multiple of num_heads=2"),
        (
            {"model": "x"},
            "--config.model=x: 'model' is a group of fields; set one of: kind, width, num_heads, "
            "window",
        ),
    ],
)
def test_refusals_name_the_class_that_was_chosen(overrides, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Run(), overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize("cfg", [Run(), Run(model=Cell(kind="lstm", width=3))])
def test_round_trip(cfg):
    assert from_dict(Run, to_dict(cfg)) == cfg
    assert apply_overrides(Run(), flatten(cfg)) == cfg


def test_a_saved_config_without_kind_is_the_first():
    assert from_dict(Run, {"model": {"width": 4}}) == Run(model=Attending(width=4))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"kind": "gr"}, "--config"),
        ({"kind": ["gru"]}, "expected one of attending, gru, lstm"),
        ({"kind": "gru", "num_heads": 2}, "config.model.num_heads: Cell has no such field"),
    ],
)
def test_a_saved_config_that_no_kind_accepts(saved, message):
    with pytest.raises(ConfigError, match="expected one of|no such field") as caught:
        from_dict(Run, {"model": saved})
    assert message in str(caught.value) or message == "--config"
