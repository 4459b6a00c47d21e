"""JSON from outside: parsed strictly, and held against a declared form before anything is taken.

A form is plain data: a type, where `float` is any number and `dict` and `list` are any of theirs;
None, or text that it must be; a function that says of a value whether it will do, whose name is
told where it will not; a tuple of forms of which one must hold; [form], a list of any length of it,
or [form, form, ...] of exactly these; {"name": form, ...}, an object with these fields, further
ones free and a missing one the same as null; {str: form}, an object of any names, or
{function: form}, of names that will do.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    None: "null",
    object: "anything",
}


def parse(text: bytes | str) -> Any:
    """The value of a JSON text, in UTF-8 where it is bytes.

    Raises:
      ValueError: one line on what is wrong. Refused besides what is no JSON are nesting that is too
        deep to read and a name given twice. An integer of more than 64 bits becomes a float, in the
        end an infinite one.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def problem(value: Any, form: Any, at: str = "") -> str | None:
    """Where and how a value of JSON departs from a form, in one line; None where it does not."""
    if isinstance(form, tuple):
        found = [problem(value, option, at) for option in form]
        return None if None in found else found[0]
    if not _holds(value, form):
        return f"{at or 'it'}: expected {_describe(form)}"
    parts = iter(())
    if isinstance(form, dict):
        parts = _named(value, form, at)
    elif isinstance(form, list):
        parts = _numbered(value, form, at)
    return next((p for part in parts if (p := problem(*part)) is not None), None)


def count(value: Any) -> bool:
    """A whole number from 0."""
    return type(value) is int and value >= 0


def finite(value: Any) -> bool:
    """A number that is neither infinite nor NaN."""
    return type(value) in (int, float) and math.isfinite(value)


def _holds(value: Any, form: Any) -> bool:
    """Whether the form is that of the value, its parts not looked at."""
    if isinstance(form, dict):
        return isinstance(value, dict)
    if isinstance(form, list):
        return isinstance(value, list) and len(form) in (1, len(value))
    if form is None or isinstance(form, str):
        return value == form
    if not isinstance(form, type):
        return form(value)
    if form in (int, float):
        return type(value) is int or type(value) is form
    return isinstance(value, form)


def _numbered(value: list, form: list, at: str) -> Iterator[tuple[Any, Any, str]]:
    forms = form if len(form) > 1 else form * len(value)
    return ((v, f, f"{at}[{i}]") for i, (v, f) in enumerate(zip(value, forms, strict=True)))


def _named(value: dict, form: dict, at: str) -> Iterator[tuple[Any, Any, str]]:
    for name, inner in form.items():
        if isinstance(name, str):
            yield value.get(name), inner, _place(at, name)
            continue
        for key, part in value.items():
            yield key, name, f"the name {_place(at, key)}"
            yield part, inner, _place(at, key)


def _place(at: str, name: str) -> str:
    name = name if name.isprintable() else ascii(name)
    return f"{at}.{name:.80}" if at else f"{name:.80}"


def _describe(form: Any) -> str:
    if isinstance(form, dict | list):
        several = f" of {len(form)}" if isinstance(form, list) and len(form) > 1 else ""
        return _NAMES[type(form)] + several
    if isinstance(form, str):
        return repr(form)
    return _NAMES.get(form) or form.__name__.strip("_").replace("_", " ")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r:.80} is given twice")
    return values


def _integer(digits: str) -> int | float:
    if len(digits) <= 20 and -(2**63) <= (number := int(digits)) < 2**63:
        return number
    return float(digits)
