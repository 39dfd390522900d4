"""Results as text: a median with its spread, and columns that line up."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the least and most where there is more than one."""
    shown = [format(value, form) for value in (median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def table(*rows: Sequence[str]) -> str:
    """Rows of cells, the first being the heads, the first column at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
