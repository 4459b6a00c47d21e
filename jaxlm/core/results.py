"""What a study found, as rows in long format: one measured number each."""

import dataclasses
from typing import Any, NamedTuple

from jaxlm.core import json_forms

FORMAT = 1


class Row(NamedTuple):
    """One number.

    fields: what was varied, by name: {"positions": "rope", "num_heads": 2}; plain values.
    seed: of the repetition, None for a number that belongs to no single seed.
    step: updates done when it was measured, None where there is no training.
    unit: "nats/token", "share", "parameters", ...; "1" for a pure number.
    """

    fields: dict[str, Any]
    seed: int | None
    step: int | None
    metric: str
    value: float
    unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All rows of a study, with the config they follow from (as nested plain values)."""

    study: str
    config: dict[str, Any]
    rows: tuple[Row, ...]

    def select(self, metric: str | None = None, *, step: Any = ..., **fields: Any) -> "Results":
        """The rows of a metric whose step and fields have the values given.

        A value may be a function: value -> bool. A row without a field is not selected by it.
        """

        def holds(want, have):
            return want(have) if callable(want) else want == have

        rows = tuple(
            row
            for row in self.rows
            if metric in (None, row.metric)
            and (step is ... or holds(step, row.step))
            and all(n in row.fields and holds(want, row.fields[n]) for n, want in fields.items())
        )
        return dataclasses.replace(self, rows=rows)

    def by(self, *names: str) -> dict[tuple, "Results"]:
        """Rows grouped by fields, in order of first appearance; "seed" and "step" count as such."""
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(tuple(_value(row, name) for name in names), []).append(row)
        return {k: dataclasses.replace(self, rows=tuple(rows)) for k, rows in groups.items()}

    def values(self) -> list[float]:
        """The numbers, in the order of the rows."""
        return [row.value for row in self.rows]


def _value(row: Row, name: str) -> Any:
    return getattr(row, name) if name in ("seed", "step") else row.fields.get(name)


_PLAIN = (str, int, float, bool, None)
_VALUE = (json_forms.finite, "nan", "inf", "-inf")
_FORM = {
    "study": str,
    "config": dict,
    "rows": [[{str: _PLAIN}, (int, None), (int, None), str, _VALUE, str]],
}


def to_json(results: Results) -> dict[str, Any]:
    """Plain values for JSON; floats keep all their digits, NaN and infinities become text."""
    rows = [[r.fields, r.seed, r.step, r.metric, _plain(r.value), r.unit] for r in results.rows]
    columns = list(Row._fields)
    return {
        "format_version": FORMAT,
        "study": results.study,
        "config": results.config,
        "columns": columns,
        "rows": rows,
    }


def from_json(data: Any) -> Results:
    """The inverse of `to_json`; a ValueError says what is wrong with other data."""
    if not isinstance(data, dict) or data.get("format_version") != FORMAT:
        raise ValueError(f"expected the results of a study, format_version {FORMAT}")
    if data.get("columns") != list(Row._fields):
        raise ValueError(f"expected the columns {', '.join(Row._fields)}")
    if problem := json_forms.problem(data, _FORM):
        raise ValueError(problem)
    rows = tuple(Row(*row)._replace(value=float(row[4])) for row in data["rows"])
    return Results(study=data["study"], config=data["config"], rows=rows)


def to_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) for a CSV file: study, each field, seed, step, metric, value, unit.

    A field that a row does not have is an empty cell.
    """
    names = list(dict.fromkeys(name for row in results.rows for name in row.fields))
    header = ["study", *names, "seed", "step", "metric", "value", "unit"]
    table = [
        [
            results.study,
            *(row.fields.get(name, "") for name in names),
            *("" if v is None else v for v in (row.seed, row.step)),
            row.metric,
            repr(float(row.value)),
            row.unit,
        ]
        for row in results.rows
    ]
    return header, table


def _plain(value: float) -> float | str:
    value = float(value)
    return value if abs(value) < float("inf") else str(value)
