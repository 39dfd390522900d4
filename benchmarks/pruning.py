"""What pruning saves in a search on MNIST, and whether what is found is as good."""

from collections.abc import Sequence

from benchmarks.contest import Lab
from benchmarks.search import search
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts

PRUNERS = {"none": ("hydra/sweeper/pruner=none",), "as it comes": ()}
RATIO, BEST = "of the epochs without", "best validation accuracy"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row without and with pruning: epochs trained, their share, the best validation accuracy.
    Each round has another seed.
    """
    given = ["hparams_search=mnist_learning_rate", f"data.dir={DATA}", "tracking=none"]
    given += ["monitor.metric=val/acc", "monitor.mode=max", f"hydra.sweeper.seed={turn - 1}"]
    given += ["hydra.sweeper.n_jobs=2"]
    if quick:
        given += ["data.train_size=5120", "hydra.sweeper.n_trials=4"]
    rows: list[Row] = []
    for pruner, own in PRUNERS.items():
        trials, jobs = search(lab, *given, *own)
        histories = jobs.folder.glob("*/history.csv")
        epochs = sum(len(file.read_text().splitlines()) - 1 for file in histories)
        best = max(trial.value for trial in trials if trial.value is not None)
        share = epochs / rows[0]["epochs"] if rows else 1.0
        rows.append({"pruner": pruner, "epochs": epochs, RATIO: share, BEST: best})
    return rows


def show(rows: Sequence[Row]) -> Lines:
    """A line for each pruner."""
    return summary(rows, ("pruner",), {"epochs": ",.0f", RATIO: ".0%", BEST: ".2%"})


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each seed."""
    drawn = {"epochs": "epochs", "best accuracy": BEST}
    measured = {name: panels(rows, key, of="pruner")[""] for name, key in drawn.items()}
    return charts.dots(measured, title="A search on MNIST, pruned or not", x="")
