"""Many networks trained as one stack against one by one."""

import os
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.contest import Lab, seeds
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts


class Case(NamedTuple):
    """Jobs that differ in their seeds: how many, what they share, how many times as fast."""

    members: int
    overrides: tuple[str, ...]
    goal: float


CASES = {
    "XOR": Case(1000, ("experiment=xor",), 200),
    "digits, 64-32-10": Case(32, ("data=digits", "model.hidden=[64,32]"), 15),
    "digits, a small LeNet by torch.func": Case(
        32, ("data=digits", "model=cnn", "model.channels=[4,8]", "model.hidden=32"), 2
    ),
    "MNIST, 256-128": Case(
        16, (f"data.dir={DATA}", "data.train_size=20480", "trainer.max_epochs=2"), 1.3
    ),
}
SAME = ("tracking=none", "callbacks.early_stopping=null", "model.dropout=0")
ALONE = 3  # jobs trained one by one, whose median stands for all
RATIO = "times as fast"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each case: seconds of training, of all as one and of one alone; how many times as
    fast the first is as all one by one; seconds of the whole command; what was aimed at.
    """
    rows = []
    for name, case in CASES.items():
        members = 4 if quick else case.members
        alone = median(_training(lab, "basic", case, ALONE)[0])
        all_, whole = _training(lab, "fused", case, members)
        row = {"jobs": name, "members": members, "seconds": max(all_), "one alone": alone}
        ratio = members * alone / max(all_)
        rows.append({**row, RATIO: ratio, "goal": case.goal, "whole command": whole})
    return rows


def _training(lab: Lab, launcher: str, case: Case, members: int) -> tuple[list[float], float]:
    threads = int(os.environ["OMP_NUM_THREADS"])  # as `python -m benchmarks` was told
    jobs = lab.multirun(
        *case.overrides, *SAME, seeds(members), f"hydra/launcher={launcher}", threads=threads
    )
    return [metrics["time/fit_s"] for metrics in jobs.metrics], jobs.usage.seconds


def show(rows: Sequence[Row]) -> Lines:
    """A line for each case."""
    forms = {"seconds": ".2f", "one alone": ".2f", RATIO: ".1f", "whole command": ".0f"}
    return summary(rows, ("jobs", "members", "goal"), forms)


def draw(rows: Sequence[Row]) -> Figure:
    """A panel for each case, a dot for each round."""
    headed = [{**row, "jobs": f"{row['jobs']}: {row['members']:,}", "": "as one"} for row in rows]
    ratios = panels(headed, RATIO, of="", by="jobs")
    return charts.dots(ratios, title="Many networks as one stack", x=RATIO)
