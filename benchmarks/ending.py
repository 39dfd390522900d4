"""What the end of a job takes that was trained in a stack, and the end of a run by itself."""

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import Lab, seeds
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts

SECONDS, EACH = "seconds", "ms a job"
GOALS = {"none": 5, "mlflow": 20}  # seconds for a thousand jobs


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for the jobs of a stack, without and with MLflow, from the first end to the last, and
    one for a run on MNIST, from its last epoch to its summary.
    """
    count, rows = 20 if quick else 1000, []
    for tracking, goal in GOALS.items():
        given = ("experiment=xor", "hydra/launcher=fused", seeds(count), f"tracking={tracking}")
        threads = int(os.environ["OMP_NUM_THREADS"])  # as `python -m benchmarks` was told
        ends = sorted(_ends(lab.multirun(*given, threads=threads).folder))
        seconds = ends[-1] - ends[0]
        row = {"what": f"{count:,} XOR jobs of a stack", "tracking": tracking, SECONDS: seconds}
        rows.append({**row, EACH: 1000 * seconds / (count - 1), "goal": goal})
    run = lab.train(f"data.dir={DATA}", "trainer.max_epochs=1", "tracking=mlflow").metrics
    end = run["time/total_s"] - run["time/startup_s"] - run["time/fit_s"]
    return [*rows, {"what": "a run on MNIST", "tracking": "mlflow", SECONDS: end, "goal": 1}]


def _ends(folder: Path) -> list[float]:
    return [path.stat().st_mtime for path in folder.glob("*/metrics.json")]


def show(rows: Sequence[Row]) -> Lines:
    """A line for each."""
    return summary(rows, ("what", "tracking", "goal"), {SECONDS: ".2f", EACH: ".1f"})


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    headed = [{**row, "what": f"{row['what']}, tracking={row['tracking']}"} for row in rows]
    return charts.dots(panels(headed, SECONDS, of="what"), title="Ends of runs", x=SECONDS)
