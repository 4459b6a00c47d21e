"""Typed frozen configs: overrides by path, JSON in and out, and errors that name what to change.

A config is a frozen dataclass of plain values and of further configs. Overrides such as
`model.num_layers=8` are parsed by the declared type of the field, so a typing error is found
when it is read and never by a default that quietly stands in.

A field may be one of several configs, `model: TransformerConfig | RecurrentConfig`. Their first
field, `kind: Literal[...]`, tells them apart.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import struct
import types
import typing
from typing import Any

FLAG = "--config."
KIND = "kind"  # the field by whose value one of several configs is chosen


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names what to change."""


class MissingPackage(ConfigError):
    """Something needs a package that is not installed; the message says how to install it."""


def nearest(name: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def as_typed(value: Any) -> str:
    """A value of a field as the command line takes it: true, none, 1,2."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(as_typed, value)) if isinstance(value, list | tuple) else str(value)


def apply_overrides(config: Any, overrides: dict[str, Any]) -> Any:
    """A copy of `config` with {"model.num_layers": "8"} applied; text is parsed by declared type.

    Values that are not text are checked against the type instead of parsed. All overrides are put
    in place before a config checks itself, so two that only fit together may come in any order.
    Where one of several configs is chosen anew by its `kind`, the fields that it shares with the
    one before keep what they were set to; those left at their default take the new one's.

    Raises:
      ConfigError: unknown field (with the nearest name), a value of another type, or a
        combination the config itself refuses.
    """
    parsed: dict[str, Any] = {}
    for path, value in overrides.items():
        *parents, name = path.split(".")
        flag = f"{FLAG}{path}={as_typed(value)}"
        owner, inside = type(config), config
        for depth, parent in enumerate(parents, 1):
            declared, inside = _field_type(owner, parent, flag), getattr(inside, parent, None)
            if not _configs(declared):
                raise ConfigError(f"{flag}: '{parent}' is a value, it has no fields of its own")
            kind = ".".join([*parents[:depth], KIND])
            owner = _chosen(declared, overrides.get(kind), inside, f"{FLAG}{kind}")
        declared = _field_type(owner, name, flag)
        if _configs(declared):
            group = _chosen(declared, None, getattr(inside, name, None), flag)
            known = ", ".join(f.name for f in dataclasses.fields(group))
            raise ConfigError(f"{flag}: '{name}' is a group of fields; set one of: {known}")
        parsed[path] = _parse(declared, value, flag)
    typed = {path: f"{FLAG}{path}={as_typed(value)}" for path, value in overrides.items()}
    return _replace(config, parsed, "", type(config), typed)


def _configs(declared: Any) -> tuple[type, ...]:
    """The dataclasses that a field of this type may hold; () for a plain value."""
    options = typing.get_args(declared) if _is_union(declared) else (declared,)
    return options if all(map(dataclasses.is_dataclass, options)) else ()


def _is_union(declared: Any) -> bool:
    return typing.get_origin(declared) in (types.UnionType, typing.Union)


def _chosen(declared: Any, kind: Any, now: Any, flag: str) -> type:
    """Of the configs that `declared` allows that of a kind; None: that of `now`, or the first.

    Raises:
      ConfigError: none is of this kind.
    """
    options = _configs(declared)
    if len(options) == 1 or kind is None:
        return type(now) if type(now) in options else options[0]
    kinds = {k: c for c in options for k in typing.get_args(typing.get_type_hints(c)[KIND])}
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{flag}={kind}: expected one of {', '.join(kinds)}")
    return kinds[kind]


def _replace(
    config: Any, values: dict[str, Any], prefix: str, cls: type, typed: dict[str, str]
) -> Any:
    """`config` as a `cls` with these values; see `apply_overrides`. typed: {whole path: flag}."""
    mine = {p: v for p, v in values.items() if "." not in p}
    groups: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if rest:
            groups.setdefault(head, {})[rest] = value
    hints = typing.get_type_hints(cls)
    for head, inner in groups.items():
        part = getattr(config, head)
        chosen = _chosen(hints[head], inner.get(KIND), part, f"{FLAG}{prefix}{head}.{KIND}")
        mine[head] = _replace(part, inner, f"{prefix}{head}.", chosen, typed)
    if not mine:
        return config
    try:
        if type(config) is cls:
            return dataclasses.replace(config, **mine)
        return cls(**{**_shared(config, cls), **mine})
    except ConfigError:
        raise
    except ValueError as error:
        given = {path: typed[prefix + path] for path in values}
        named = [flag for path, flag in given.items() if _names(str(error), path)]
        raise ConfigError(f"{' '.join(named or given.values())}: {error}") from None


def _names(message: str, path: str) -> bool:
    """Whether a message speaks of this field; "data.order" speaks of `order`, not of `data`."""
    return bool(re.search(rf"\b{re.escape(path.rpartition('.')[2])}\b(?!\.\w)", message))


def _shared(config: Any, cls: type) -> dict[str, Any]:
    """What was set in `config` and may stand in a `cls`: {field: value}."""
    kept, hints = {}, typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)} - {KIND}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in names or value == field.default:
            continue
        with contextlib.suppress(ValueError, TypeError):
            kept[field.name] = _convert(hints[field.name], value)
    return kept


def _field_type(owner: Any, name: str, flag: str) -> Any:
    hints = typing.get_type_hints(owner)
    names = [f.name for f in dataclasses.fields(owner)]
    if name not in names:
        hint = nearest(name, names) or f" (fields: {', '.join(names)})"
        raise ConfigError(f"{flag}: {owner.__name__} has no field '{name}'{hint}")
    return hints[name]


def describe_type(declared: Any) -> str:
    """What a field of this type takes, in words: "int or none", "one of rms, layer"."""
    origin, args = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if a is types.NoneType else describe_type(a) for a in args)
    if origin is tuple:
        if typing.get_origin(args[0]) is typing.Literal:
            return f"{describe_type(args[0])}, several joined by commas"
        return f"{describe_type(args[0])}s joined by commas"
    return {bool: "true or false", int: "int", float: "float", str: "text"}.get(
        declared, str(declared)
    )


def _parse(declared: Any, value: Any, flag: str) -> Any:
    try:
        return _convert(declared, value)
    except (ValueError, TypeError):
        raise ConfigError(f"{flag}: expected {describe_type(declared)}, got {value!r}") from None


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
        if value not in ("true", "false"):
            raise ValueError
        return value == "true"
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


def check_choices(config: Any) -> None:
    """Raises ValueError where a field of a Literal type holds something else.

    A dataclass does not check its types, and what asks `norm == "rms"` takes "rmsnorm" for the
    other one: a model built from Python would quietly be another.
    """
    for name, declared in typing.get_type_hints(type(config)).items():
        several = typing.get_origin(declared) is tuple
        choices = typing.get_args(declared)[0] if several else declared
        if typing.get_origin(choices) is not typing.Literal:
            continue
        given, known = getattr(config, name), typing.get_args(choices)
        for value in given if several else (given,):
            if value not in known:
                raise ValueError(f"{name}={value}: expected {describe_type(choices)}")


def check_numbers(config: Any) -> None:
    """Raises ConfigError for a number too large or too small for int32 or float32."""
    for path, given in flatten(config).items():
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, int) and abs(value) >= 2**31:
                raise ConfigError(f"{FLAG}{path}={as_typed(given)}: must be below 2^31 in size")
            if isinstance(value, float) and not _is_float32(value):
                raise ConfigError(
                    f"{FLAG}{path}={as_typed(given)}: as a float32 it would be infinite, or 0; "
                    "those end at 3.4e38 and 1.4e-45"
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

    A field that is missing takes its default, so that older configs stay readable; where it is one
    of several configs and does not tell its kind, it is the first.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected the fields of {cls.__name__}, got {values!r}")
    hints = typing.get_type_hints(cls)
    hints, fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}, {}
    for name, value in values.items():
        path = f"{where}.{name}"
        declared = hints.get(name)
        if declared is None:
            raise ConfigError(
                f"{path}: {cls.__name__} has no such field{nearest(name, list(hints))}"
            )
        if _configs(declared):
            kind = value.get(KIND) if isinstance(value, dict) else None
            fields[name] = from_dict(_chosen(declared, kind, None, f"{path}.{KIND}"), value, path)
        else:
            try:
                fields[name] = _convert(declared, value)
            except (ValueError, TypeError):
                raise ConfigError(
                    f"{path}: expected {describe_type(declared)}, got {value!r}"
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
