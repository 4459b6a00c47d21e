"""Overrides by path, JSON round trip, differences, and the exact text of every refusal."""

import dataclasses
import json
from typing import Literal

import pytest

from jaxlm.core.config import (
    ConfigError,
    apply_overrides,
    diff,
    flatten,
    from_dict,
    nearest,
    to_dict,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    num_layers: int = 2
    num_heads: int = 8
    num_kv_heads: int | None = None
    norm: Literal["rms", "layer"] = "rms"
    bias: bool = False
    name: str = "tiny"
    path: str | None = None

    def __post_init__(self):
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    lr: float = 1e-3
    milestones: tuple[int, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig(num_steps=10)
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("model.num_layers", "8", 8),
        ("model.num_layers", 8, 8),
        ("model.num_layers", "1_000", 1000),
        ("model.num_layers", "-3", -3),
        ("model.num_kv_heads", "4", 4),
        ("model.num_kv_heads", "none", None),
        ("model.num_kv_heads", None, None),
        ("model.norm", "layer", "layer"),
        ("model.bias", "true", True),
        ("model.bias", "false", False),
        ("model.bias", True, True),
        ("model.name", "8", "8"),
        ("model.name", "", ""),
        ("model.path", "a=b.txt", "a=b.txt"),
        ("train.lr", "3e-4", 3e-4),
        ("train.lr", "1", 1.0),
        ("train.lr", 1, 1.0),
        ("train.milestones", "1,2, 3", (1, 2, 3)),
        ("train.milestones", "", ()),
        ("train.milestones", [4, 5], (4, 5)),
        ("train.scales", "0.5,2", (0.5, 2.0)),
        ("seed", "7", 7),
    ],
)
def test_an_override_is_parsed_by_the_declared_type(path, given, expected):
    value = flatten(apply_overrides(RunConfig(), {path: given}))[path]
    assert value == expected
    assert type(value) is type(expected)


def test_an_override_leaves_the_original_and_every_other_field_alone():
    before = RunConfig()
    after = apply_overrides(before, {"model.num_layers": "8"})
    assert before == RunConfig()
    assert diff(before, after) == ["model.num_layers: 2 -> 8"]
    assert apply_overrides(before, {}) == before


@pytest.mark.parametrize("order", [1, -1])
def test_overrides_that_only_fit_together_come_in_any_order(order):
    both = [("model.num_heads", "9"), ("model.num_kv_heads", "3")][::order]
    assert apply_overrides(RunConfig(), dict(both)).model.num_kv_heads == 3


MESSAGES = [
    # the two texts that DESIGN.md gives
    (
        {"model.num_layer": "4"},
        "--config.model.num_layer=4: ModelConfig has no field 'num_layer'; did you mean "
        "'num_layers'?",
    ),
    (
        {"model.num_kv_heads": "3"},
        "--config.model.num_kv_heads=3: num_heads=8 must be a multiple of num_kv_heads=3",
    ),
    ({"sed": "4"}, "--config.sed=4: RunConfig has no field 'sed'; did you mean 'seed'?"),
    (
        {"modle.bias": "true"},
        "--config.modle.bias=true: RunConfig has no field 'modle'; did you mean 'model'?",
    ),
    (
        {"zzzz": "1"},
        "--config.zzzz=1: RunConfig has no field 'zzzz' (fields: model, train, seed)",
    ),
    ({"seed.low": "1"}, "--config.seed.low=1: 'seed' is a value, it has no fields of its own"),
    (
        {"train": "1"},
        "--config.train=1: 'train' is a group of fields; set one of: lr, milestones, "
        "scales, num_steps",
    ),
    ({"model.num_layers": "two"}, "--config.model.num_layers=two: expected int, got 'two'"),
    ({"model.num_layers": "2.0"}, "--config.model.num_layers=2.0: expected int, got '2.0'"),
    ({"model.num_layers": 2.0}, "--config.model.num_layers=2.0: expected int, got 2.0"),
    ({"model.num_layers": True}, "--config.model.num_layers=true: expected int, got True"),
    ({"model.num_layers": ""}, "--config.model.num_layers=: expected int, got ''"),
    ({"model.num_kv_heads": "x"}, "--config.model.num_kv_heads=x: expected int or none, got 'x'"),
    ({"model.norm": "batch"}, "--config.model.norm=batch: expected one of rms, layer, got 'batch'"),
    ({"model.bias": "1"}, "--config.model.bias=1: expected true or false, got '1'"),
    ({"model.name": 3}, "--config.model.name=3: expected text, got 3"),
    ({"train.lr": "fast"}, "--config.train.lr=fast: expected float, got 'fast'"),
    ({"train.lr": "nan"}, "--config.train.lr=nan: expected float, got 'nan'"),
    ({"train.lr": "inf"}, "--config.train.lr=inf: expected float, got 'inf'"),
    (
        {"train.milestones": "1,b"},
        "--config.train.milestones=1,b: expected ints joined by commas, got '1,b'",
    ),
    (
        {"train.milestones": 0},
        "--config.train.milestones=0: expected ints joined by commas, got 0",
    ),
    ({"seed": "-1"}, "--config.seed=-1: seed=-1 must not be negative"),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES)
def test_a_refusal_names_the_flag_what_was_given_and_what_was_expected(overrides, message):
    with pytest.raises(ConfigError) as refused:
        apply_overrides(RunConfig(), overrides)
    assert str(refused.value) == message
    assert "\n" not in message


def test_a_refused_combination_names_every_flag_that_took_part():
    with pytest.raises(ConfigError) as refused:
        apply_overrides(
            RunConfig(), {"model.num_heads": "6", "model.num_kv_heads": "4", "seed": "1"}
        )
    assert str(refused.value) == (
        "--config.model.num_heads=6 --config.model.num_kv_heads=4: "
        "num_heads=6 must be a multiple of num_kv_heads=4"
    )


def test_a_refusal_leaves_out_the_flags_that_had_no_part_in_it_and_shows_them_as_typed():
    others = {"model.bias": "true", "model.path": "x", "model.name": "model"}
    with pytest.raises(ConfigError) as refused:
        apply_overrides(RunConfig(), {**others, "model.num_kv_heads": "0_3", "model.norm": "layer"})
    assert str(refused.value) == (
        "--config.model.num_kv_heads=0_3: num_heads=8 must be a multiple of num_kv_heads=3"
    )

    @dataclasses.dataclass(frozen=True)
    class Refusing:
        bias: bool = False
        data: tuple[float, ...] = ()

        def __post_init__(self):
            raise ValueError(self.message)

    config = object.__new__(Refusing)
    for message, named in (
        ("bias of data.order", "--config.bias=true"),
        ("data must rise", "--config.data=0,1"),
        ("not unbiased", "--config.bias=true --config.data=0,1"),  # of neither: all are named
    ):
        Refusing.message = message
        with pytest.raises(ConfigError, match=f"^{named}: {message}$"):
            apply_overrides(config, {"bias": True, "data": (0, 1)})


def test_a_number_too_large_for_a_float_is_refused_as_any_other():
    with pytest.raises(ConfigError, match="expected float"):
        apply_overrides(RunConfig(), {"train.lr": 10**400})


def test_json_round_trip_gives_the_same_config():
    cfg = apply_overrides(
        RunConfig(),
        {
            "train.milestones": "1,2",
            "train.lr": "0.1",
            "model.num_kv_heads": "2",
            "model.bias": "true",
        },
    )
    text = json.dumps(to_dict(cfg))
    again = from_dict(RunConfig, json.loads(text))
    assert again == cfg
    assert again.train.milestones == (1, 2)
    assert json.loads(text)["train"]["milestones"] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, "config.sead: RunConfig has no such field; did you mean 'seed'?"),
        ({"seed": "x"}, "config.seed: expected int, got 'x'"),
        ({"seed": 1.5}, "config.seed: expected int, got 1.5"),
        ({"seed": None}, "config.seed: expected int, got None"),
        ({"seed": -1}, "config: seed=-1 must not be negative"),
        ({"model": 3}, "config.model: expected the fields of ModelConfig, got 3"),
        (
            {"model": {"num_layer": 1}},
            "config.model.num_layer: ModelConfig has no such field; did you mean 'num_layers'?",
        ),
        (
            {"model": {"num_kv_heads": 3}},
            "config.model: num_heads=8 must be a multiple of num_kv_heads=3",
        ),
        (
            {"train": {"milestones": 5}},
            "config.train.milestones: expected ints joined by commas, got 5",
        ),
    ],
)
def test_a_saved_config_that_does_not_fit_is_refused_by_path(change, message):
    with pytest.raises(ConfigError) as refused:
        from_dict(RunConfig, to_dict(RunConfig()) | change)
    assert str(refused.value) == message


def test_a_saved_config_without_a_needed_field_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"config\.train: .*num_steps"):
        from_dict(RunConfig, {"train": {"lr": 1.0}})


def test_flatten_keeps_the_order_of_declaration():
    assert list(flatten(RunConfig()))[:3] == [
        "model.num_layers",
        "model.num_heads",
        "model.num_kv_heads",
    ]
    assert list(flatten(RunConfig()))[-1] == "seed"


def test_diff_of_equals_is_empty():
    assert diff(RunConfig(), RunConfig()) == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [("num_head", "; did you mean 'num_heads'?"), ("qqq", ""), ("bias", "; did you mean 'bias'?")],
)
def test_nearest_offers_the_closest_name_or_nothing(name, hint):
    assert nearest(name, ["num_layers", "num_heads", "bias"]) == hint
