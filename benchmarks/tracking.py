"""What it costs to have a run recorded in MLflow."""

from collections.abc import Sequence
from statistics import median

from benchmarks.contest import Lab, overrides
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import Task
from matplotlib.figure import Figure

from perceptrail import charts

CHOICES = ("none", "mlflow")
FORMS = {"seconds in all": ".1f", "samples/s": ",.0f", "MiB": ",.0f"}


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each choice: seconds of the whole process, samples a second, and the peak memory of
    the process that trains; and one for their ratios.
    """
    task = Task(images=10_240, epochs=2) if quick else Task(epochs=5)
    found = {}
    for choice in CHOICES if turn % 2 else reversed(CHOICES):
        run = lab.train(*overrides(task), f"tracking={choice}")
        speed = median(epoch.speed for epoch in run.epochs[1:])
        found[choice] = dict(zip(FORMS, (run.usage.seconds, speed, run.usage.memory), strict=True))
    off, on = (found[choice] for choice in CHOICES)
    ratios = {f"{key}, ratio": on[key] / off[key] for key in FORMS}
    return [{"tracking": "none", **off}, {"tracking": "mlflow", **on, **ratios}]


def show(rows: Sequence[Row]) -> Lines:
    """With and without, and the ratios within a round."""
    ratios = {f"{key}, ratio": ".2f" for key in FORMS}
    return summary(rows, ("tracking",), FORMS | ratios)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    seconds = panels(rows, "seconds in all", of="tracking")
    return charts.dots(seconds, title="Five epochs, tracked or not", x="seconds in all")
