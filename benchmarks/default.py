"""Training speed of the default network, dropout and all, against a loop by hand and a template."""

from dataclasses import replace

from benchmarks.contest import Lab, Row
from benchmarks.speed import contest, draw, show
from benchmarks.task import Task

__all__ = ["draw", "measure", "show"]

TASK = Task(hidden=(256, 128), dropout=0.2, images=30_720, epochs=3)


def measure(lab: Lab, *, rounds: int, quick: bool) -> list[Row]:
    """As `speed` measures, of what has dropout."""
    task = replace(TASK, images=10_240, epochs=2) if quick else TASK
    return contest(lab, {task: ["Lightning template"]}, rounds=rounds)
