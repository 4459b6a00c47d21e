"""A config made in Python refuses a name that is none of a field's, as the command line does.

Without that `norm="rmsnorm"` is a layer norm, since what asks for "rms" takes all else for it.
"""

import dataclasses
import typing
from typing import Literal

import pytest

from jaxlm.models.encoder import EncoderConfig
from jaxlm.models.kinds import AnyModelConfig
from jaxlm.models.ngram import NgramConfig
from jaxlm.train.config import RunConfig

GROUPS = [c for c in typing.get_type_hints(RunConfig).values() if isinstance(c, type)]
GROUPS = [c for c in GROUPS if dataclasses.is_dataclass(c)]


def choices():
    """(config class, field, whether it holds several) of every field with a fixed set of values."""
    for cls in [*GROUPS, *typing.get_args(AnyModelConfig), NgramConfig, EncoderConfig]:
        for name, declared in typing.get_type_hints(cls).items():
            args = typing.get_args(declared)
            several = typing.get_origin(declared) is tuple
            if typing.get_origin(args[0] if several else declared) is Literal:
                yield pytest.param(cls, name, several, id=f"{cls.__name__}.{name}")


def test_all_groups_are_looked_at():
    names = {param.id for param in choices()}
    assert {"TransformerConfig.norm", "OptimConfig.schedule", "DataConfig.order"} <= names
    assert {"TrainConfig.trackers", "MeshConfig.layout", "LoraConfig.scaling"} <= names


@pytest.mark.parametrize(("cls", "name", "several"), list(choices()))
def test_a_name_that_is_none_of_the_fields_is_refused(cls, name, several):
    with pytest.raises(ValueError, match=rf"{name}=nonesuch: expected one of \w+"):
        cls(**{name: ("nonesuch",) if several else "nonesuch"})
