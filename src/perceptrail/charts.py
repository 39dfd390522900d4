"""Charts of studies: what was measured for several seeds, always with its spread."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from perceptrail.drawing import (
    COLOURS,
    INK,
    MARKERS,
    MEDIUM,
    SMALL,
    line,
    log_if_wide,
    nth,
    panel,
    sheet,
)

Series = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]
Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def lines(
    panels: Mapping[str, Series],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    percent: bool = False,
) -> Figure:
    """Means in bands of ± one standard deviation, a panel for each group of series.

    A series is (x [n], values [n][seeds]), of whose values some may be NaN. `x` and `y` name the
    axes with their units; `percent` draws shares in percent.
    """
    factor = 100 if percent else 1
    width, height = 3.9 if len(panels) > 1 else 5.4, 3.0
    columns = len(panels) if len(panels) < 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    foot = 0.25 * (1 + (len(names) - 1) // 4) if len(names) > 1 else 0.0
    head = 0.7 if any(panels) else 0.5
    across, up = width + 0.75, height + 0.95
    total = 0.55 + foot + up * (rows - 1) + height + head
    figure = sheet(0.5 + across * columns, total, title=title)
    for i, (heading, series) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        box = (0.75 + across * column, 0.55 + foot + up * (rows - 1 - row), width, height)
        axes = panel(figure, box, x=x, y=y if column == 0 else "")
        axes.set_title(heading, fontsize=MEDIUM, color=INK, loc="left")
        for name, (at, values) in series.items():
            k = names.index(name)
            mean, sd = zip(*(mean_sd(of_seeds) for of_seeds in values), strict=True)
            style = {
                "colour": nth(COLOURS, k),
                "marker": nth(MARKERS, k + k // len(COLOURS)),
                "label": name,
            }
            line(axes, np.array(at, float), factor * np.array(mean), factor * np.array(sd), **style)
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({value for at, _ in series.values() for value in at})
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.minorticks_off()
        elif all(float(value).is_integer() for at, _ in series.values() for value in at):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        log_if_wide(axes)
    if len(names) > 1:
        drawn = {line.get_label(): line for axes in figure.axes for line in axes.lines}
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.05, 0), "ncols": 4}
        figure.legend(handles=list(drawn.values()), fontsize=SMALL, frameon=False, **place)
    return figure


def dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    x: str,
    percent: bool = False,
) -> Figure:
    """A row for each variant: a dot for every seed, and the mean with ± one standard deviation.

    `panels` maps headings to variants to their values, one a seed; three panels make a row.
    """
    variants = list(dict.fromkeys(name for group in panels.values() for name in group))
    longest = max(map(len, variants))
    left, width, height = 0.35 + 0.068 * longest, 3.4, 0.3 * len(variants) + 0.2
    head = 0.7 if any(panels) else 0.5
    across, above, pitch = min(len(panels), 3), (len(panels) - 1) // 3, height + 0.9
    tall = 0.5 + above * pitch + height + head
    figure = sheet(left + (width + 0.35) * across, tall, title=title)
    for number, (heading, group) in enumerate(panels.items()):
        column, bottom = number % 3, 0.5 + pitch * (above - number // 3)
        axes = panel(figure, (left + (width + 0.35) * column, bottom, width, height), x=x)
        axes.set_title(heading, fontsize=MEDIUM, color=INK, loc="left")
        for name, values in group.items():
            row, factor = variants.index(name), 100 if percent else 1
            mean, sd = mean_sd(values)
            each = [factor * value for value in values]
            axes.plot(each, [row] * len(each), "o", color=COLOURS[0], alpha=0.35, markersize=4)
            bar: dict[str, Any] = {"color": INK, "capsize": 3, "markersize": 8, "linewidth": 1.4}
            axes.errorbar(factor * mean, row, xerr=factor * sd, fmt="|", **bar)
        if (
            percent
            and axes.get_xlim()[1] > 100 >= max(max(values) for values in group.values()) * 100
        ):
            axes.set_xlim(right=100.5)
        axes.set_yticks(range(len(variants)), variants if column == 0 else [""] * len(variants))
        axes.set_ylim(len(variants) - 0.5, -0.5)
    return figure


def functions(
    curves: Mapping[str, Mapping[str, Function]],
    *,
    title: str,
    between: tuple[float, float],
) -> Figure:
    """Functions of one variable, a small panel for each heading."""
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = sheet(0.3 + 2.2 * columns, 0.45 + 1.85 * rows, title=title)
    at = np.linspace(*between, 801)
    for i, (heading, named) in enumerate(curves.items()):
        box = (0.4 + 2.2 * (i % columns), 0.35 + 1.85 * (rows - 1 - i // columns), 1.7, 1.25)
        axes = panel(figure, box)
        axes.set_title(heading, fontsize=MEDIUM, color=INK, loc="left")
        for k, (name, f) in enumerate(named.items()):
            axes.plot(
                at, f(at), nth(("-", "--", ":"), k), color=COLOURS[k], label=name, linewidth=1.6
            )
        if i == 0 and len(named) > 1:
            place: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (0.97, 1), "ncols": 4}
            figure.legend(fontsize=MEDIUM, labelcolor=INK, frameon=False, **place)
    return figure


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the values that are numbers; NaN if none is, 0 for one."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0
