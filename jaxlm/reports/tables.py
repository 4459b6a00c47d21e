"""Tables of text in columns, for a terminal and for what reads its output."""

from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]], left: bool = False) -> None:
    """Rows of cells, the headings first; the first column to the left, the others to the right.

    left: all columns to the left.
    """
    widths = column_widths(rows)
    for row in rows:
        print_row(row, widths, left)


def column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The characters of each column's widest cell."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def print_row(row: Sequence[str], widths: Sequence[int], left: bool = False) -> None:
    """One row of such a table, at once: of one whose rows take their time."""
    padded = [
        cell.ljust(width) if left or i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    print("  ".join(padded).rstrip(), flush=True)
