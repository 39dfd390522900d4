"""What a search costs beside its trials, with one worker and one thread."""

from collections.abc import Sequence
from statistics import mean

from benchmarks.contest import Lab
from benchmarks.search import pace, search
from benchmarks.table import Lines, Row, panels, summary
from matplotlib.figure import Figure

from perceptrail import charts

GOALS = {"none": 40, "mlflow": 150}  # milliseconds
TRIAL, JOB, BESIDE = "ms a trial", "ms of its job", "ms beside the job"
FIT, BESIDE_FIT = "ms of its training", "ms beside the training"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for a search without and one with MLflow: the time from trial to trial, the time of an
    untracked trial's job and of the training within, and what is spent beside each.
    """
    given = ["hparams_search=xor", "trainer.max_epochs=1", "hydra/sweeper/pruner=none"]
    given += ["hydra/sweeper/sampler=random", f"hydra.sweeper.n_trials={20 if quick else 200}"]
    rows: list[Row] = []
    for tracking, goal in GOALS.items():
        trials, jobs = search(lab, *given, f"tracking={tracking}")
        if not rows:
            job, fit = (
                1000 * mean(m[f"time/{name}_s"] for m in jobs.metrics[1:])  # as `pace` counts
                for name in ("total", "fit")
            )
        trial = 1000 * pace(trials)
        row = {"tracking": tracking, TRIAL: trial, JOB: job, FIT: fit, "goal": goal}
        rows.append({**row, BESIDE: trial - job, BESIDE_FIT: trial - fit})
    return rows


def show(rows: Sequence[Row]) -> Lines:
    """A line without and one with MLflow."""
    forms = dict.fromkeys((TRIAL, JOB, FIT, BESIDE, BESIDE_FIT), ".1f")
    return summary(rows, ("tracking", "goal"), forms)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    times = panels(rows, BESIDE_FIT, of="tracking")
    return charts.dots(times, title="A search of XOR networks", x=BESIDE_FIT)
