"""The one style of all figures: sheets, panels, lines in bands, colours.

They are built on `Figure` itself: pyplot would keep each of them alive in global state that threads
share. Panels are placed in inches by hand, since a layout engine draws every figure twice. The
colours can be told apart by colour-blind eyes: Okabe & Ito 2008, Color Universal Design.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Rows = Sequence[Mapping[str, float]]
Box = tuple[float, float, float, float]  # left, bottom, width, height in inches

INK, GREY, LINE, SHADE = "#222222", "#6E6E6E", "#DDDDDD", "#E4E9EE"
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = "os^Dv<>P"
SMALL, MEDIUM, LARGE = 7.5, 9.0, 10.5  # points
PLAIN = "{x:g}"  # of numbers on an axis: the mathematical type of powers is slow to set


def sheet(width: float, height: float, *, title: str) -> Figure:
    """An empty figure of so many inches, with its title at the top left."""
    figure = Figure(figsize=(width, height))
    top = 1 - 0.12 / height
    figure.text(0.12 / width, top, title, va="top", color=INK, fontsize=LARGE, fontweight="bold")
    return figure


def panel(figure: Figure, box: Box, *, x: str = "", y: str = "") -> Axes:
    """Axes in the one style of all figures."""
    axes = figure.add_axes(_share(figure, box))
    axes.set_xlabel(x, fontsize=MEDIUM, color=INK)
    axes.set_ylabel(y, fontsize=MEDIUM, color=INK)
    axes.tick_params(labelsize=SMALL, color=LINE, labelcolor=INK, length=3)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    return axes


def legend(axes: Axes, **place: Any) -> None:
    """A legend in the one style."""
    axes.legend(fontsize=MEDIUM, labelcolor=INK, edgecolor="none", handletextpad=0.4, **place)


def scale(
    figure: Figure, image: AxesImage, box: Box, *, label: str, extend: str = "neither"
) -> None:
    """A colour bar beside an image."""
    bar = figure.colorbar(image, cax=figure.add_axes(_share(figure, box)), extend=extend)
    bar.set_label(label, fontsize=MEDIUM, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, length=0)
    bar.outline.set_visible(False)


def line(
    axes: Axes, x: Floats, mean: Floats, sd: Floats, *, colour: str, label: str, marker: str = "o"
) -> None:
    """A mean against x in a band of ± one standard deviation."""
    style: dict[str, Any] = {"linewidth": 1.6, "marker": marker if len(x) <= 30 else ""}
    axes.plot(x, mean, color=colour, label=label, markersize=4 if marker != "o" else 3, **style)
    if sd.any():
        axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)


def log_if_wide(axes: Axes) -> None:
    """A logarithmic axis where the values span more than a factor of twenty."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    least, most = values.min(), values.max()
    if 0 < 20 * least < most:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 1e4 * least else (1,)))
        axes.yaxis.set_major_formatter(PLAIN)
        axes.minorticks_off()


def nth(cycle: Sequence[str], k: int) -> str:
    """The k-th of a cycle of colours or markers."""
    return cycle[k % len(cycle)]


def _share(figure: Figure, box: Box) -> Box:
    width, height = figure.get_size_inches()
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height
