"""What configs of studies refuse; each raises ValueError and names the field."""

import dataclasses
from typing import Any


def check_not_empty(config: Any) -> None:
    """Every tuple names at least one."""
    for name, value in _fields(config):
        if isinstance(value, tuple) and not value:
            raise ValueError(f"{name} must name at least one")


def check_positive(config: Any) -> None:
    """Every whole number is at least 1."""
    for name, value in _fields(config):
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def check_rising(config: Any, name: str) -> None:
    """The numbers of a field rise, from above 0."""
    values = getattr(config, name)
    if values != tuple(sorted(set(values))) or values[0] <= 0:
        raise ValueError(f"{name}={values} must rise, from above 0")


def check_multiple(config: Any, name: str, of: str) -> None:
    """One field is a whole multiple of another."""
    value, unit = getattr(config, name), getattr(config, of)
    if value % unit:
        raise ValueError(f"{name}={value} must be a multiple of {of}={unit}")


def _fields(config: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
