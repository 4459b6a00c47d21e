"""Typed frozen configs: overrides by path, JSON in and out, and errors that name what to change.

A config is a frozen dataclass of plain values and of further configs. Overrides such as
`model.num_layers=8` are parsed by the declared type of the field, so a typing error is found
when it is read and never by a default that quietly stands in.
"""

import dataclasses
import difflib
import json
import math
import struct
import types
import typing
from typing import Any

FLAG = "--config."


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names what to change."""


def nearest(name: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def apply_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of `config` with {"model.num_layers": "8"} applied; text is parsed by declared type.

    Values that are not text are checked against the type instead of parsed. All overrides are put
    in place before a config checks itself, so two that only fit together may come in any order.

    Raises:
      ConfigError: unknown field (with the nearest name), a value of another type, or a
        combination the config itself refuses.
    """
    parsed: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, name = path.split(".")
        flag = f"{FLAG}{path}={value}"
        owner = type(config)
        for parent in parents:
            owner = _field_type(owner, parent, flag)
            if not dataclasses.is_dataclass(owner):
                raise ConfigError(f"{flag}: '{parent}' is a value, it has no fields of its own")
        declared = _field_type(owner, name, flag)
        if dataclasses.is_dataclass(declared):
            inside = ", ".join(f.name for f in dataclasses.fields(declared))
            raise ConfigError(f"{flag}: '{name}' is a group of fields; set one of: {inside}")
        parsed[path] = _parse(declared, value, flag)
    return _replace(config, parsed, "")


def _replace(config: Any, values: dict[str, Any], prefix: str) -> Any:
    mine = {p: v for p, v in values.items() if "." not in p}
    groups: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if rest:
            groups.setdefault(head, {})[rest] = value
    for head, inner in groups.items():
        mine[head] = _replace(getattr(config, head), inner, f"{prefix}{head}.")
    if not mine:
        return config
    try:
        return dataclasses.replace(config, **mine)
    except ConfigError:
        raise
    except ValueError as error:
        given = " ".join(f"{FLAG}{prefix}{p}={v}" for p, v in values.items())
        raise ConfigError(f"{given}: {error}") from None


def _field_type(owner: Any, name: str, flag: str) -> Any:
    hints = typing.get_type_hints(owner)
    names = [f.name for f in dataclasses.fields(owner)]
    if name not in names:
        hint = nearest(name, names) or f" (fields: {', '.join(names)})"
        raise ConfigError(f"{flag}: {owner.__name__} has no field '{name}'{hint}")
    return hints[name]


def _describe(declared: Any) -> str:
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if a is types.NoneType else _describe(a) for a in args)
    if origin is tuple:
        if typing.get_origin(args[0]) is typing.Literal:
            return f"{_describe(args[0])}, several joined by commas"
        return f"{_describe(args[0])}s joined by commas"
    return {bool: "true or false", int: "int", float: "float", str: "text"}.get(
        declared, str(declared)
    )


def _parse(declared: Any, value: Any, flag: str) -> Any:
    try:
        return _convert(declared, value)
    except (ValueError, TypeError):
        raise ConfigError(f"{flag}: expected {_describe(declared)}, got {value!r}") from None


def _convert(declared: Any, value: Any) -> Any:
    """`value` as the declared type; text is parsed, anything else must already be of the type."""
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Literal:
        for choice in args:
            if value == choice or (isinstance(value, str) and value == str(choice)):
                return choice
        raise ValueError
    if origin in (types.UnionType, typing.Union):
        if types.NoneType in args and (value is None or value in ("none", "None")):
            return None
        for option in args:
            if option is types.NoneType:
                continue
            try:
                return _convert(option, value)
            except (ValueError, TypeError):
                pass
        raise ValueError
    if origin is tuple:
        if not isinstance(value, str | list | tuple):
            raise TypeError
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        return tuple(_convert(args[0], p.strip() if isinstance(p, str) else p) for p in parts)
    if declared is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}[value] if value in ("true", "false") else _fail()
    if declared is str:
        if not isinstance(value, str):
            raise TypeError
        value.encode()  # refuses what no file of ours could hold: the halves of a surrogate pair
        return value
    if declared in (int, float):
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if declared is int and isinstance(value, float):
            raise ValueError
        try:
            number = declared(value.replace("_", "") if isinstance(value, str) else value)
        except OverflowError:
            raise ValueError from None
        if declared is float and not math.isfinite(number):
            raise ValueError
        return number
    raise TypeError(f"a config field of type {declared} cannot be set from text")


def _fail():
    raise ValueError


def check_numbers(config: Any) -> None:
    """Raises ConfigError for a number too large or too small for int32 or float32."""
    for path, given in flatten(config).items():
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, int) and abs(value) >= 2**31:
                raise ConfigError(f"{FLAG}{path}={value}: must be below 2^31 in size")
            if isinstance(value, float) and not _is_float32(value):
                raise ConfigError(
                    f"{FLAG}{path}={value}: as a float32 it would be infinite, or 0; those end at "
                    "3.4e38 and 1.4e-45"
                )


def _is_float32(value: float) -> bool:
    """Whether rounding to float32 gives a finite number, and zero only of zero."""
    try:
        (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return False
    return bool(rounded) or not value


def with_traced(config: Any, values: dict[str, Any]) -> Any:
    """A copy of a config with some of its numbers replaced by arrays, for use inside a trace.

    The values are not checked: what may stand in the fields was checked when they were numbers.
    """
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        value = values.get(field.name, getattr(config, field.name))
        object.__setattr__(copy, field.name, value)
    return copy


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """The inverse of `to_dict`; an unknown field or a wrong type is a ConfigError.

    A field that is missing takes its default, so that older configs stay readable.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected the fields of {cls.__name__}, got {values!r}")
    hints, fields = typing.get_type_hints(cls), {}
    for name, value in values.items():
        path = f"{where}.{name}"
        declared = hints.get(name)
        if declared is None:
            raise ConfigError(
                f"{path}: {cls.__name__} has no such field{nearest(name, list(hints))}"
            )
        if dataclasses.is_dataclass(declared):
            fields[name] = from_dict(declared, value, path)
        else:
            try:
                fields[name] = _convert(declared, value)
            except (ValueError, TypeError):
                raise ConfigError(
                    f"{path}: expected {_describe(declared)}, got {value!r}"
                ) from None
    try:
        return cls(**fields)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None


def flatten(config: Any) -> dict[str, Any]:
    """{"model.num_layers": 8, ...} in the order of declaration."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update({f"{field.name}.{name}": v for name, v in flatten(value).items()})
        else:
            flat[field.name] = value
    return flat


def diff(before: Any, after: Any) -> list[str]:
    """ "model.num_layers: 4 -> 8" for each field in which two configs of one type differ."""
    old, new = flatten(before), flatten(after)
    paths = list(dict.fromkeys([*old, *new]))
    return [
        f"{path}: {old.get(path)} -> {new.get(path)}"
        for path in paths
        if old.get(path) != new.get(path)
    ]
