"""Figures of what was told against what is true: arrays in, a matplotlib figure out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perceptrail.drawing import BLUE, GREY, VERMILION, Floats, panel, sheet

SHOWN = 4  # numbers at most, side by side
_DOTS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3, "color": BLUE}


def predicted_against_true(true: Floats, predicted: Floats, *, names: Sequence[str]) -> Figure:
    """Numbers [n, numbers] as they are and as they were told; the line is where it is right."""
    figure, panels = _row(names, title=f"{len(true):,} examples, as they were told", y="predicted")
    for k, axes in enumerate(panels):
        _dots(axes, true[:, k], predicted[:, k])
        ends = [f(np.concatenate([true[:, k], predicted[:, k]])) for f in (np.min, np.max)]
        axes.plot(ends, ends, color=VERMILION, linewidth=1.2)
        axes.set_xlabel(f"true {names[k]}")
    return figure


def residuals(true: Floats, predicted: Floats, *, names: Sequence[str]) -> Figure:
    """By how much each of the numbers [n, numbers] was missed, against what was told."""
    missed = true - predicted
    figure, panels = _row(names, title="True less predicted", y="residual")
    for k, axes in enumerate(panels):
        _dots(axes, predicted[:, k], missed[:, k])
        axes.axhline(0, color=VERMILION, linewidth=1.2)
        spread = missed[:, k].std()
        axes.axhspan(-spread, spread, color=GREY, alpha=0.15, linewidth=0)
        axes.set_xlabel(f"predicted {names[k]}")
    return figure


def _row(names: Sequence[str], *, title: str, y: str) -> tuple[Figure, list[Axes]]:
    shown = min(len(names), SHOWN)
    figure = sheet(max(3.9 * shown, 4.2), 3.9, title=title)
    boxes = [(0.8 + 3.9 * k, 0.5, 2.9, 2.9) for k in range(shown)]
    return figure, [panel(figure, box, x=names[k], y=y) for k, box in enumerate(boxes)]


def _dots(axes: Axes, x: Floats, y: Floats) -> None:
    axes.plot(x, y, alpha=min(1.0, max(0.1, 300 / len(x))), markeredgewidth=0, **_DOTS)
