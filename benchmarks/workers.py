"""What a second worker brings to a search on MNIST, with one thread each."""

from collections.abc import Sequence

from benchmarks.contest import Lab
from benchmarks.search import pace, search
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts

RATIO = "over one worker"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for one worker and for two: trials a minute, and that over one worker's."""
    given = ["hparams_search=mnist_learning_rate", f"data.dir={DATA}", "tracking=none"]
    given += ["trainer.max_epochs=1", "optimizer=adam", "schedule=constant"]
    given += ["optimizer.lr=interval(1e-4,1e-3)"]  # whose every value takes as long
    given += ["hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"]
    given += [f"data.train_size={2560 if quick else 30_720}"]
    given += [f"hydra.sweeper.n_trials={4 if quick else 12}"]
    paces = {}
    for workers in (1, 2):
        trials, _ = search(lab, *given, f"hydra.sweeper.n_jobs={workers}")
        paces[workers] = 60 / pace(trials, workers)
    return [
        {"workers": f"{n} at a time", "trials a minute": pace_, RATIO: pace_ / paces[1]}
        for n, pace_ in paces.items()
    ]


def show(rows: Sequence[Row]) -> Lines:
    """A line for each number of workers."""
    return summary(rows, ("workers",), {"trials a minute": ".1f", RATIO: ".2f"})


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    paces = panels(rows, "trials a minute", of="workers")
    return charts.dots(paces, title="A search on MNIST", x="trials a minute")
