"""Parts that the reports of runs and of studies share: the config, and where it ran."""

import shlex
from typing import Any

from jaxlm.reports import page


def config(values: dict[str, Any]) -> str:
    """A card for each group of settings, after one of those in no group."""
    loose, groups = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            groups.append(page.card(name, page.pairs(_flat(value))))
        else:
            loose.append((name, plain(value)))
    if loose:
        groups.insert(0, page.card("run", page.pairs(loose)))
    return page.cards(groups)


def environment(provenance: dict[str, Any]) -> str:
    """The command, then commit, device and versions, and what earlier starts had otherwise."""
    command, parts = provenance.get("command"), []
    earlier, now = provenance.get("earlier") or (), _flat(provenance)
    provenance = {name: value for name, value in provenance.items() if name != "earlier"}
    if isinstance(command, list):
        parts.append(page.text_block("", shlex.join(map(str, command))))
    rows, groups = [], []
    for name, value in provenance.items():
        if isinstance(value, dict):
            groups.append(page.card(name, page.pairs(_flat(value))))
        elif name != "command" and value not in (None, ""):
            rows.append((name.replace("_", " "), plain(value)))
    for number, before in enumerate(earlier, 1):
        other = [row for row in _flat(before) if row not in now]
        groups.append(page.card(f"start {number}, what was other", page.pairs(other)))
    parts.append(page.cards([page.card("run", page.pairs(rows)), *groups]))
    return "".join(parts)


def plain(value: Any) -> str:
    """A setting as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, plain(value)))
    return rows
