"""Training speed by size of the network, and the share of the machine's peak that it reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median

from benchmarks.contest import Lab, Peers, overrides
from benchmarks.peers import LOOP, PEERS
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import Task
from matplotlib.figure import Figure

from perceptrail import charts

US = "perceptrail"
CHECKED = Task(hidden=(256, 128), images=15_360, epochs=3)  # where the accuracies are compared
TASKS = [
    replace(CHECKED, hidden=(128,)),
    CHECKED,
    replace(CHECKED, hidden=(512, 512), images=10_240),
    replace(CHECKED, hidden=(1024, 1024), images=5_120),
]
LARGE_BATCH = replace(TASKS[2], batch=256)  # where the share of the peak has its goal
OTHERS = [name for name in PEERS if name != LOOP]
SLOW = ("PyTorch DataLoader", "Lightning template")
SLICE = 5_120  # images that these two have at most, but in the first round's comparison
PAIRED = 5  # epochs of perceptrail and of the loop, in turn
TOLERANCE = 0.01  # between accuracies that count as equal
RATIO = "perceptrail's speed over it"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each network and contender: samples a second over the training batches alone,
    without the first epoch; the ratio of perceptrail's speed to this one in the same round; the
    share of the machine's peak; the accuracy where all have the same to learn from.

    The hand-written loop has its epochs between perceptrail's, in the same process. Each other peer
    has a process a round, which is idle until it is its turn: what is compared lies within seconds.
    """
    rows: list[Row] = []
    with Peers() as peers:
        for task in [replace(CHECKED, images=10_240, epochs=2)] if quick else TASKS:
            slice_ = replace(task, images=min(task.images, SLICE))
            whole = turn == 1 and task.name == CHECKED.name
            given = {name: slice_ if name in SLOW and not whole else task for name in OTHERS}
            rows += contest(lab, peers, task, given)
        return rows if quick else rows + contest(lab, peers, LARGE_BATCH, {})


def contest(lab: Lab, peers: Peers, task: Task, others: Mapping[str, Task]) -> list[Row]:
    """The rows of perceptrail, the loop, and other peers, each with its own part of the data."""
    rows, peak = _pair(lab, task)
    ours = rows[0]["samples/s"]
    for name, theirs in others.items():
        epochs = peers.train(name, theirs)
        speed = median(epoch.speed for epoch in epochs[1:])
        row = {"contender": name, "samples/s": speed, RATIO: ours / speed}
        learned = {"accuracy": epochs[-1].accuracy} if theirs == task else {}
        rows.append({**row, "of peak": speed * task.flops / peak, **learned})
    return [{"network": task.name, **row} for row in rows]


def _pair(lab: Lab, task: Task) -> tuple[list[Row], float]:
    """Perceptrail and the hand-written loop, epoch by epoch in turn; and the peak meanwhile."""
    run = lab.train(*overrides(replace(task, epochs=PAIRED)), callback="Rival")
    ours = [epoch.speed for epoch in run.epochs[1:]]
    theirs = [task.images / note["seconds"] for note in run.noted[1:]]
    peaks = [note["peak"] / task.flops for note in run.noted[1:]]  # in samples a second
    last = task.epochs - 1  # where the others stop
    rows: list[Row] = [
        {
            "contender": name,
            "samples/s": median(speeds),
            "of peak": median(a / b for a, b in zip(speeds, peaks, strict=True)),
            "accuracy": accuracy,
        }
        for name, speeds, accuracy in (
            (US, ours, run.epochs[last].accuracy),
            (LOOP, theirs, run.noted[last]["accuracy"]),
        )
    ]
    rows[1][RATIO] = median(a / b for a, b in zip(ours, theirs, strict=True))
    return rows, median(peaks) * task.flops


def unequal(rows: Sequence[Row]) -> set[str]:
    """The contenders whose mean accuracy with the network `CHECKED` is not that of the others."""
    reached: dict[str, list[float]] = {}
    for row in rows:
        if row["network"] == CHECKED.name and "accuracy" in row:
            reached.setdefault(row["contender"], []).append(row["accuracy"])
    usual = median(map(mean, reached.values()))
    return {name for name, values in reached.items() if abs(mean(values) - usual) > TOLERANCE}


def show(rows: Sequence[Row]) -> Lines:
    """A line for each network and contender; who learned something else is not compared."""
    others = unequal(rows)
    compared = [{**row, RATIO: None} if row["contender"] in others else row for row in rows]
    forms = {"samples/s": ",.0f", RATIO: ".2f", "of peak": ".0%", "accuracy": ".2%"}
    return summary(compared, ("network", "contender"), forms)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    others = unequal(rows)
    compared = [row for row in rows if row["contender"] not in others]
    speeds = panels(compared, "samples/s", of="contender", by="network")
    return charts.dots(speeds, title="Training speed by network", x="samples a second")
