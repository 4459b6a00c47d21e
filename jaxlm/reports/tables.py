"""Tables of text in columns, for a terminal and for what reads its output."""

from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]], left: bool = False) -> None:
    """Rows of cells, the headings first; the first column to the left, the others to the right.

    left: all columns to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [
            cell.ljust(width) if left or i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(padded).rstrip())
