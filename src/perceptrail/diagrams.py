"""Figures of what was told against what is true: arrays in, a matplotlib figure out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perceptrail.drawing import (
    BLUE,
    COLOURS,
    GREY,
    VERMILION,
    Floats,
    Integers,
    legend,
    nth,
    panel,
    sheet,
)

SHOWN = 4  # numbers at most, side by side
CURVES, BINS = 8, 10  # at most; of probability
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


def roc_and_reliability(true: Integers, probability: Floats, *, names: Sequence[str]) -> Figure:
    """How labels [n, labels], 0 or 1, are told apart by their probability, and how true that is.

    At the left, the share of those that hold which are found against the share of the others which
    are taken for them, over all thresholds. At the right, how often a label holds that is given
    such a probability, in tenths; the larger the dot, the more there are.
    """
    shown = range(min(len(names), CURVES))
    areas = [area(*curve(true[:, k], probability[:, k])) for k in shown]
    title = f"{len(true):,} examples: area under the curve {np.nanmean(areas):.4f}"
    figure = sheet(8.4, 4.2, title=title)
    left = panel(figure, (0.7, 0.5, 3.2, 3.2), x="false positives", y="true positives")
    right = panel(figure, (4.85, 0.5, 3.2, 3.2), x="probability", y="share that holds")
    for k in shown:
        colour, label = nth(COLOURS, k), f"{names[k]} ({areas[k]:.3f})"
        left.plot(*curve(true[:, k], probability[:, k]), color=colour, linewidth=1.4, label=label)
        bins = np.minimum((probability[:, k] * BINS).astype(int), BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        seen = count > 0
        told, held = (
            np.bincount(bins, values, BINS)[seen] / count[seen]
            for values in (probability[:, k], true[:, k])
        )
        right.plot(told, held, color=colour, linewidth=1)
        right.scatter(told, held, color=colour, s=10 + 90 * count[seen] / count.max())
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    legend(left, loc="lower right")
    return figure


def curve(true: Integers, score: Floats) -> tuple[Floats, Floats]:
    """The ROC curve of labels [n], 0 or 1, by their scores: false and true positive rates."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # of those with one score
    found = np.cumsum(true[order])[last]
    passed = np.flatnonzero(last) + 1 - found
    with np.errstate(invalid="ignore"):  # where there are none
        rates = [np.append(0, sums) / sums[-1] for sums in (passed, found)]
    return rates[0], rates[1]


def area(x: Floats, y: Floats) -> float:
    """The area under a curve."""
    return float(np.trapezoid(y, x))


def _row(names: Sequence[str], *, title: str, y: str) -> tuple[Figure, list[Axes]]:
    shown = min(len(names), SHOWN)
    figure = sheet(max(3.9 * shown, 4.2), 3.9, title=title)
    boxes = [(0.8 + 3.9 * k, 0.5, 2.9, 2.9) for k in range(shown)]
    return figure, [panel(figure, box, x=names[k], y=y) for k, box in enumerate(boxes)]


def _dots(axes: Axes, x: Floats, y: Floats) -> None:
    axes.plot(x, y, alpha=min(1.0, max(0.1, 300 / len(x))), markeredgewidth=0, **_DOTS)
