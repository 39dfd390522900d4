"""Measured numbers as people read them: rounded by their spread, and in tables."""

import math
from collections.abc import Mapping
from typing import NamedTuple


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
