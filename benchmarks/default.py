"""Training speed of the default network, dropout and all, against a loop by hand and a template."""

from dataclasses import replace

from benchmarks.contest import Lab, Peers
from benchmarks.speed import CHECKED, contest, draw, show
from benchmarks.table import Row

__all__ = ["draw", "measure", "show"]

TASK = replace(CHECKED, dropout=0.2)


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """As `speed` measures, of what has dropout."""
    task = replace(TASK, images=10_240, epochs=2) if quick else TASK
    with Peers() as peers:
        return contest(lab, peers, task, {"Lightning template": task})
