"""What it costs to have a run recorded in MLflow."""

from collections.abc import Sequence
from statistics import median

from benchmarks.contest import Lab, Row, overrides
from benchmarks.table import spread, table
from benchmarks.task import Task
from matplotlib.figure import Figure

from perceptrail import charts

CHOICES = ("mlflow", "none")


def measure(lab: Lab, *, rounds: int, quick: bool) -> list[Row]:
    """A row for each round and choice: seconds of the whole process, samples a second, and the
    peak memory of the process that trains.
    """
    rows: list[Row] = []
    task = Task(images=10_240, epochs=2) if quick else Task(epochs=5)
    for turn in range(1, rounds + 1):
        for choice in CHOICES if turn % 2 else reversed(CHOICES):
            run = lab.train(*overrides(task), f"tracking={choice}")
            speed = median(epoch.speed for epoch in run.epochs[1:])
            row = {"round": turn, "tracking": choice, "seconds": run.usage.seconds}
            rows.append({**row, "speed": speed, "memory": run.usage.memory})
    return rows


def show(rows: Sequence[Row]) -> str:
    """With, without, and the ratio within a round."""
    forms = {"seconds": ".1f", "speed": ",.0f", "memory": ",.0f"}
    of = {
        choice: {
            key: [row[key] for row in sorted(rows, key=_turn) if row["tracking"] == choice]
            for key in forms
        }
        for choice in CHOICES
    }
    on, off = (of[choice] for choice in CHOICES)
    ratios = [[a / b for a, b in zip(on[key], off[key], strict=True)] for key in forms]
    return table(
        ["tracking", "seconds in all", "samples/s", "MiB"],
        *([name, *(spread(of[name][key], forms[key]) for key in forms)] for name in CHOICES),
        ["ratio", *map(spread, ratios)],
    )


def _turn(row: Row) -> int:
    return int(row["round"])


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    seconds = {c: [row["seconds"] for row in rows if row["tracking"] == c] for c in CHOICES}
    return charts.dots({"": seconds}, title="Five epochs, tracked or not", x="seconds in all")
