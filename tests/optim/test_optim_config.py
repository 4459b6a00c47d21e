"""OptimConfig: ranges, defaults by optimizer, and the numbers it hands to the step."""

import typing

import pytest

from jaxlm.core.config import ConfigError, apply_overrides
from jaxlm.optim.config import OptimConfig, Optimizer, Schedule, hyper_values
from jaxlm.optim.schedules import SCHEDULES


@pytest.mark.parametrize(
    "field, value",
    [
        ("peak_lr", 0.0),
        ("peak_lr", -1e-3),
        ("adam_lr", 0.0),
        ("lr_scale", 0.0),
        ("eps", 0.0),
        ("clip_norm", 0.0),
        ("warmup_steps", -1),
        ("decay_steps", -1),
        ("weight_decay", -0.1),
        ("b1", 1.0),
        ("b2", -0.1),
        ("momentum", 1.0),
        ("min_lr_ratio", 1.5),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^--config\.optim\.{field}={value}: expected"):
        OptimConfig(**{field: value})


@pytest.mark.parametrize(
    "field", ["decay_steps", "adam_lr", "weight_decay", "b2", "eps", "momentum"]
)
def test_none_can_be_set_as_text(field):
    given = OptimConfig(**{field: 0 if field == "decay_steps" else 0.5})
    assert apply_overrides(given, {field: "none"}) == OptimConfig()


@pytest.mark.parametrize(
    "schedule, decay_steps, fits",
    [
        ("warmup_cosine", None, 40),
        ("linear", None, 40),
        ("warmup_stable_decay", None, 49),  # 40 + 49 // 5
        ("warmup_stable_decay", 60, 100),
        ("warmup_inverse_sqrt", None, 1),
        ("constant", None, 1),
    ],
)
def test_a_run_shorter_than_its_schedule_is_refused(schedule, decay_steps, fits):
    cfg = OptimConfig(schedule=schedule, warmup_steps=40, decay_steps=decay_steps)
    hyper_values(cfg, num_steps=fits, d_model=8)
    if fits > 1:
        with pytest.raises(ConfigError, match=rf"warmup_steps=40.*{fits - 1} steps"):
            hyper_values(cfg, num_steps=fits - 1, d_model=8)


def test_names_do_not_depend_on_the_optimizer_or_schedule():
    def names(**fields):
        return list(hyper_values(OptimConfig(**fields), num_steps=1000, d_model=8))

    for optimizer in typing.get_args(Optimizer):
        for schedule in typing.get_args(Schedule):
            assert names(name=optimizer, schedule=schedule) == names()
    assert set(names()) - set(names(clip_norm=None)) == {"clip_norm"}


def test_every_schedule_that_can_be_named_exists():
    assert set(typing.get_args(Schedule)) == set(SCHEDULES)


def test_numbers_given_and_numbers_left_to_the_optimizer():
    given = OptimConfig(
        peak_lr=2e-3,
        min_lr_ratio=0.25,
        adam_lr=1e-4,
        weight_decay=0.0,
        b2=0.5,
        eps=1e-3,
        momentum=0.0,
    )
    values = hyper_values(given, num_steps=1000, d_model=32)
    assert all(type(value) is float for value in values.values())
    assert values == {
        "peak_lr": 2e-3,
        "adam_lr": 1e-4,
        "min_lr": 5e-4,
        "lr_scale": 1.0,
        "warmup_steps": 100.0,
        "decay_steps": 200.0,
        "total_steps": 1000.0,
        "d_model": 32.0,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.5,
        "eps": 1e-3,
        "momentum": 0.0,
        "clip_norm": 1.0,
    }
    left = {
        name: hyper_values(OptimConfig(name=name), num_steps=1000, d_model=32)
        for name in typing.get_args(Optimizer)
    }
    assert left["muon"]["adam_lr"] == left["muon"]["peak_lr"]
    for key, expected in {
        "weight_decay": {"adamw": 0.1, "lion": 0.1, "muon": 0.1, "adam": 0.0, "sgd": 0.0},
        "b2": {"adamw": 0.95, "adam": 0.95, "lion": 0.99},
        "eps": {"adamw": 1e-8, "rmsprop": 1e-8, "adagrad": 1e-7, "adadelta": 1e-6},
        "momentum": {"muon": 0.95, "sgd": 0.9, "rmsprop": 0.9, "adadelta": 0.9},
    }.items():
        assert {name: left[name][key] for name in expected} == expected
