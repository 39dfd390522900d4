"""Results as text and for charts: medians with their spread, of rows that belong together."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]  # of results: what was measured, and of what
Lines = list[list[str]]  # cells, the first line being the heads


def spread(values: Sequence[float | None], form: str = ".2f") -> str:
    """The median, and the least and most where there is more than one; a dash if one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    if not known:
        return ""
    shown = [format(value, form) for value in (median(known), min(known), max(known))]
    return shown[0] if len(known) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def summary(rows: Sequence[Row], keys: Sequence[str], forms: Mapping[str, str]) -> Lines:
    """A line for all rows with the same `keys`, of what `forms` has a format for."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    lines = [[*keys, *forms]]
    for named, mine in groups.items():
        cells = [spread([row[k] for row in mine if k in row], form) for k, form in forms.items()]
        lines.append([*(f"{k:,}" if isinstance(k, int) else str(k) for k in named), *cells])
    return lines


def panels(
    rows: Sequence[Row], value: str, *, of: str, by: str | None = None
) -> dict[str, dict[str, list[float]]]:
    """For `charts.dots`: the known values of each `of`, in a panel for each `by`."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.get(value) is not None:
            panel = found.setdefault(row[by] if by else "", {})
            panel.setdefault(row[of], []).append(row[value])
    return found


def markdown(lines: Lines) -> str:
    """A Markdown table whose columns line up, those of numbers at the right."""
    columns = [_column(cells, left=i == 0) for i, cells in enumerate(zip(*lines, strict=True))]
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _column(cells: Sequence[str], *, left: bool) -> list[str]:
    width = max(map(len, cells))
    left = left or not any(cell[:1].isdigit() for cell in cells[1:])
    head, *body = [cell.ljust(width) if left else cell.rjust(width) for cell in cells]
    return [head, "-" * width if left else "-" * (width - 1) + ":", *body]
