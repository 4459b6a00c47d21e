"""What configs of studies refuse; each raises ValueError and names the field."""

import dataclasses
from typing import Any

from jaxlm.core.config import as_typed


def check_not_empty(config: Any) -> None:
    """Every tuple names at least one."""
    for name, value in _fields(config):
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{name} must name at least one")


def check_positive(config: Any, may_be_zero: tuple[str, ...] = ()) -> None:
    """Every number is above 0, those in tuples too; in some fields it may be 0."""
    for name, value in _fields(config):
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float) or number > 0:
                continue
            if number < 0 or name not in may_be_zero:
                least = "at least 1" if isinstance(number, int) else "above 0"
                least = "at least 0" if name in may_be_zero else least
                raise ValueError(f"{name}={as_typed(value)} must be {least}")


def check_rising(config: Any, name: str) -> None:
    """The numbers of a field rise, from above 0."""
    values = getattr(config, name)
    if values != tuple(sorted(set(values))) or values[0] <= 0:
        raise ValueError(f"{name}={as_typed(values)} must rise, from above 0")


def check_multiple(config: Any, name: str, of: str) -> None:
    """One field is a whole multiple of another."""
    value, unit = getattr(config, name), getattr(config, of)
    if value % unit:
        raise ValueError(f"{name}={value} must be a multiple of {of}={unit}")


def check_at_most(config: Any, name: str, of: str) -> None:
    """One field is no more than another."""
    value, most = getattr(config, name), getattr(config, of)
    if value > most:
        raise ValueError(f"{name}={value} must be at most {of}={most}")


def _fields(config: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
