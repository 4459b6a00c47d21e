"""--job=fields: every field of a config: its value, what it may be, and what it does."""

import dataclasses
import shutil
import textwrap
import typing
from typing import Any

from jaxlm.core.config import FLAG, KIND, as_typed, describe_type
from jaxlm.core.field_notes import field_notes
from jaxlm.jobs import Launch
from jaxlm.jobs.configs import launch_config

COLUMN = 34  # where what is said of a field begins


def main(launch: Launch) -> int:
    """Prints the fields as they are typed; those of the config, of the run or of the default."""
    cfg, name = launch_config(launch)
    width = shutil.get_terminal_size().columns
    print(f"# {name}; set as {FLAG}FIELD=VALUE")
    for line in list_fields(cfg, width):
        print(line)
    return 0


def list_fields(
    config: Any, width: int, prefix: str = "", kinds: tuple[type, ...] = ()
) -> list[str]:
    """A paragraph a group: path=value, then its type and what is said of it, at most `width` wide.

    kinds: the configs of which this one was chosen.
    """
    own: list[str] = []
    groups: list[str] = []
    hints, notes = typing.get_type_hints(type(config)), field_notes(type(config))
    for field in dataclasses.fields(config):
        value, declared = getattr(config, field.name), hints[field.name]
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            groups += list_fields(value, width, f"{path}.", typing.get_args(declared))
            continue
        said = f"{describe_type(declared)}; {notes.get(field.name, '')}".removesuffix("; ")
        if kinds and field.name == KIND:
            names = [k for c in kinds for k in typing.get_args(typing.get_type_hints(c)[KIND])]
            said = f"one of {', '.join(names)}; each has fields of its own"
        own += _entry(f"{path}={as_typed(value)}", said, width)
    return [*(["", *own] if own else []), *groups]


def _entry(setting: str, said: str, width: int) -> list[str]:
    """The setting, and beside it what is said; below it where the setting is too long."""
    gap = " " * COLUMN
    lines = textwrap.wrap(said, max(width, COLUMN + 30), initial_indent=gap, subsequent_indent=gap)
    if len(setting) < COLUMN - 1:
        lines[0] = f"{setting:{COLUMN}}{lines[0].lstrip()}"
        return lines
    return [setting, *lines]
