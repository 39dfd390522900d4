"""Training speed by size of the network, and the share of the machine's peak that it reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median

from benchmarks.contest import Lab, Peer, Row, overrides
from benchmarks.peers import LOOP, PEERS
from benchmarks.table import spread, table
from benchmarks.task import Task
from matplotlib.figure import Figure

from perceptrail import charts

US = "perceptrail"
TASKS = [
    Task(hidden=hidden, images=15_360, epochs=3)
    for hidden in ((128,), (256, 128), (512, 512), (1024, 1024))
]
LARGE_BATCH = replace(TASKS[2], batch=256)  # where the share of the peak has its goal
OTHERS = [name for name in PEERS if name != LOOP]
PAIRED = 5  # epochs of perceptrail and of the loop, in turn
TOLERANCE = 0.01  # between accuracies that count as equal


def measure(lab: Lab, *, rounds: int, quick: bool) -> list[Row]:
    """A row for each round, network and contender: samples a second over the training batches
    alone, without the first epoch; the accuracy; the ratio of perceptrail's speed to this one in
    the same round; the share of the machine's peak.

    The hand-written loop has its epochs between perceptrail's, in the same process. Each other peer
    has a process a round, which is idle until it is its turn: what is compared lies within seconds.
    """
    tasks = [replace(TASKS[0], images=10_240, epochs=2)] if quick else [*TASKS, LARGE_BATCH]
    contenders = {task: [] if task == LARGE_BATCH else OTHERS for task in tasks}
    return contest(lab, contenders, rounds=rounds)


def contest(lab: Lab, contenders: Mapping[Task, Sequence[str]], *, rounds: int) -> list[Row]:
    """The rows of perceptrail, the loop, and the peers that each task names."""
    rows: list[Row] = []
    for turn in range(1, rounds + 1):
        peers: dict[str, Peer] = {}  # each begins at its first turn: importing takes a processor
        for task, others in contenders.items():
            measured, peak = _pair(lab, task)
            ours = measured[0]["speed"]
            for name in others:
                if name not in peers:
                    peers[name] = Peer(name)
                epochs = peers[name].train(task)
                speed = median(epoch.speed for epoch in epochs[1:])
                accuracy, ratio = epochs[-1].accuracy, ours / speed
                row = {"contender": name, "speed": speed, "accuracy": accuracy, "ratio": ratio}
                measured.append({**row, "share": speed * task.flops / peak})
            rows += [{"round": turn, "network": task.name, **row} for row in measured]
            print(f"round {turn}  {task.name}: {ours:,.0f} samples/s", flush=True)
        for peer in peers.values():
            peer.close()
    return rows


def _pair(lab: Lab, task: Task) -> tuple[list[Row], float]:
    """Perceptrail and the hand-written loop, epoch by epoch in turn; and the peak meanwhile."""
    run = lab.train(*overrides(replace(task, epochs=PAIRED)), callback="Rival")
    ours = [epoch.speed for epoch in run.epochs[1:]]
    theirs = [task.images / note["seconds"] for note in run.noted[1:]]
    peaks = [note["peak"] / task.flops for note in run.noted[1:]]  # in samples a second
    last = task.epochs - 1  # where the others stop
    figures = {
        US: (ours, run.epochs[last].accuracy),
        LOOP: (theirs, run.noted[last]["accuracy"]),
    }
    measured: list[Row] = [
        {
            "contender": name,
            "speed": median(speeds),
            "accuracy": accuracy,
            "ratio": median(a / b for a, b in zip(ours, speeds, strict=True)),
            "share": median(a / b for a, b in zip(speeds, peaks, strict=True)),
        }
        for name, (speeds, accuracy) in figures.items()
    ]
    return measured, median(peaks) * task.flops


def unequal(rows: Sequence[Row]) -> set[tuple[str, str]]:
    """The networks and contenders whose mean accuracy is not that of the others."""
    reached: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_network = reached.setdefault(row["network"], {})
        of_network.setdefault(row["contender"], []).append(row["accuracy"])
    return {
        (network, name)
        for network, by_name in reached.items()
        for name, values in by_name.items()
        if abs(mean(values) - median(map(mean, by_name.values()))) > TOLERANCE
    }


def show(rows: Sequence[Row]) -> str:
    """A table a network; a contender that learned something else is not compared."""
    others = unequal(rows)
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        lines = [["contender", "samples/s", "accuracy", "perceptrail's speed over it", "of peak"]]
        here = [row for row in rows if row["network"] == network]
        for name in dict.fromkeys(row["contender"] for row in here):
            mine = [row for row in here if row["contender"] == name]
            columns = {key: [row[key] for row in mine] for key in mine[0] if key not in ("round",)}
            ratio = "accuracy differs" if (network, name) in others else spread(columns["ratio"])
            lines.append(
                [
                    name,
                    spread(columns["speed"], ",.0f"),
                    spread(columns["accuracy"], ".2%"),
                    "" if name == US else ratio,
                    spread(columns["share"], ".0%"),
                ]
            )
        parts.append(f"{network}\n{table(*lines)}")
    return "\n\n".join(parts)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    panels: dict[str, dict[str, list[float]]] = {}
    others = unequal(rows)
    for row in rows:
        if (row["network"], row["contender"]) not in others:
            panel = panels.setdefault(row["network"], {})
            panel.setdefault(row["contender"], []).append(row["speed"] / 1000)
    return charts.dots(panels, title="Training speed by network", x="thousand samples a second")
