"""Measured numbers as people read them: rounded by their spread, and in tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Cells under heads; the first column says what a row is about."""

    heads: list[str]
    rows: list[list[str]]


def of_metrics(metrics: Mapping[str, float | None]) -> list[Table]:
    """The numbers of a metrics.json: `measure/variant` beside the measures of the same variants."""
    cells: dict[str, dict[str, str]] = {}
    for name, value in metrics.items():
        if not name.endswith(" sd"):
            measure, _, variant = name.rpartition("/")
            cells.setdefault(measure, {})[variant] = number(value, metrics.get(f"{name} sd"))
    alone = [
        [f"{measure}/{variant}".lstrip("/"), text]
        for measure, of_variants in cells.items()
        if not measure or len(of_variants) == 1
        for variant, text in of_variants.items()
    ]
    together: dict[tuple[str, ...], list[str]] = {}
    for measure, of_variants in cells.items():
        if measure and len(of_variants) > 1:
            together.setdefault(tuple(of_variants), []).append(measure)
    return [
        *([Table(["", "mean ± sd"], alone)] if alone else []),
        *(
            Table(["", *measures], [[v, *(cells[m][v] for m in measures)] for v in variants])
            for variants, measures in together.items()
        ),
    ]


def number(value: float | None, sd: float | None = None) -> str:
    """A number with the digits that its spread leaves it; None is a run that diverged."""
    if value is None:
        return "–"
    if not sd:
        large = float(value).is_integer() or abs(value) >= 1000
        text = f"{value:,.0f}" if large else f"{value:.3g}" if value < 0.01 else f"{value:.4g}"
        return text if sd is None else f"{text} ± 0"
    digits = 1 - math.floor(math.log10(sd))
    if digits > 6:
        return f"{value:.2g} ± {sd:.1g}"
    return f"{value:,.{max(0, digits)}f} ± {sd:,.{max(0, digits)}f}"


def averaged(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows that differ in numbers alone become one, with mean ± standard deviation."""
    heads = list(dict.fromkeys(k for row in rows for k in row if k != "round"))
    texts = [k for k in heads if any(isinstance(row.get(k), str) for row in rows)]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(k, "")) for k in texts), []).append(row)
    values = [k for k in heads if k not in texts]
    return Table(
        [*texts, *values],
        [
            [*named, *(_mean(row.get(k) for row in same) for k in values)]
            for named, same in groups.items()
        ],
    )


def _mean(values: Iterable[Any]) -> str:
    known = [float(value) for value in values if isinstance(value, int | float)]
    if not known:
        return ""
    return number(mean(known), stdev(known) if len(known) > 1 else None)
