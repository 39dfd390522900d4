"""How long the whole process takes to reach an accuracy on the validation data, and its memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.contest import Epoch, Lab, Peer, Usage, overrides
from benchmarks.peers import LOOP
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA, SEED, Task
from matplotlib.figure import Figure

from perceptrail import charts

TARGETS = (0.97, 0.98, 0.985)
TASK = Task(epochs=8, target=TARGETS[1], seconds=30)  # 98.5% is out of this recipe's reach
# Trainings with a schedule that goes by their length, so that their ends alone count.
SCHEDULED = {
    "perceptrail, experiment=mnist_fast": ("experiment=mnist_fast",),
    "perceptrail's defaults, 12 epochs": ("trainer.max_epochs=12",),
    "perceptrail, experiment=mnist_best, 5 epochs": (
        "experiment=mnist_best",
        "trainer.max_epochs=5",
    ),
}
FIRST_ROUND = ("Lightning template", "scikit-learn")  # too slow to be there again
Outcome = tuple[str, list[Epoch], Usage]


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each contender and accuracy: the seconds of a process that would have ended with
    the first epoch to reach it, null if none did; the peak memory of the whole.
    """
    task = replace(TASK, images=10_240, epochs=1) if quick else TASK
    short = (f"data.train_size={task.images}", "trainer.max_epochs=1") if quick else ()
    peers = (LOOP, *FIRST_ROUND) if turn == 1 else (LOOP,)
    rows: list[Row] = []
    for name, epochs, usage in _outcomes(lab, task, peers, short):
        after = usage.seconds - epochs[-1].elapsed
        for target in (0.5,) if quick else TARGETS:
            reached = [epoch.elapsed + after for epoch in epochs if epoch.accuracy >= target]
            row = {"contender": name, "target": f"{target:.1%}", "MiB": usage.memory}
            rows.append({**row, "seconds": reached[0] if reached else None})
    return rows


def _outcomes(
    lab: Lab, task: Task, peers: Sequence[str], short: Sequence[str]
) -> Iterator[Outcome]:
    run = lab.train(*overrides(task))
    yield "perceptrail", run.epochs, run.usage
    for name, given in SCHEDULED.items():
        run = lab.train(f"data.dir={DATA}", f"seed={SEED}", *given, *short)
        yield name, run.epochs[-1:], run.usage
    for name in peers:
        peer = Peer(name)
        epochs = peer.train(task)
        yield name, epochs, peer.close()


def show(rows: Sequence[Row]) -> Lines:
    """A line for each contender and accuracy."""
    forms = {"seconds": ".1f", "MiB": ",.0f"}
    return summary(rows, ("contender", "target"), forms)


def draw(rows: Sequence[Row]) -> Figure:
    """A panel for each accuracy, a dot for each round."""
    seconds = panels(rows, "seconds", of="contender", by="target")
    return charts.dots(seconds, title="Whole process to a validation accuracy", x="seconds")
