"""Figures of a run: arrays in, a matplotlib figure out; nothing is read or written.

They are built on `Figure` itself: pyplot would keep each of them alive in global state, which no
other thread may touch. Margins are set by hand, since a layout engine draws every figure twice.
Colours tell apart for colour-blind eyes: Okabe & Ito 2008, Color Universal Design.
"""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = "os^Dv<>P"
INK, GREY, PAPER = "#222222", "#777777", "#EEF1F4"
ERRORS = LinearSegmentedColormap.from_list("errors", ["#FFFFFF", "#F5C39B", VERMILION, "#7A3000"])

Array = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

# Of a metric's name what follows the last slash, and how the axis is called.
_PANELS = {
    "loss": "loss (nats)",
    "acc": "accuracy (%)",
    "lr": "learning rate",
    "dropout": "dropout rate",
}
