"""What bfloat16 brings on a processor that multiplies it, by size of the network and the batch."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.contest import Lab, overrides
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import Task
from matplotlib.figure import Figure

from perceptrail import charts

FIRST = Task(images=30_720, epochs=4)
CASES = {
    FIRST: 1.3,
    replace(FIRST, hidden=(512, 512), batch=256): 2,
    replace(FIRST, hidden=(1024, 1024), batch=256, images=15_360): 3,
}  # and what is aimed at
RATIO = "over float32"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each network: samples a second in float32 and in bfloat16, and the ratio."""
    rows: list[Row] = []
    for task, goal in list(CASES.items())[: 1 if quick else None]:
        speeds = {}
        for precision in ("32-true", "bf16-mixed"):
            given = overrides(task)
            run = lab.train(*given, f"trainer.precision={precision}", "tracking=none")
            speeds[precision] = run.metrics["train/samples_per_second"]
        ratio = speeds["bf16-mixed"] / speeds["32-true"]
        rows.append({"network": task.name, **speeds, RATIO: ratio, "goal": goal})
    return rows


def show(rows: Sequence[Row]) -> Lines:
    """A line for each network."""
    forms = {"32-true": ",.0f", "bf16-mixed": ",.0f", RATIO: ".2f"}
    return summary(rows, ("network", "goal"), forms)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    ratios = panels([{**row, "": "bfloat16"} for row in rows], RATIO, of="", by="network")
    return charts.dots(ratios, title="bfloat16 on the processor", x=RATIO)
