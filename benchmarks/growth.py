"""How time and memory grow with the rows of the data, and with a network's width and depth."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from benchmarks.contest import Lab, Row, overrides
from benchmarks.table import spread, table
from benchmarks.task import DATA, Task
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceptrail import charts
from perceptrail.data import idx

# Rows and the side of an image: 6 million of 28x28 would be 19 GB of numbers.
DATA_SIZES = ((60_000, 28), (600_000, 28), (60_000, 7), (600_000, 7), (6_000_000, 7))
NETWORKS: Mapping[str, Mapping[int, tuple[int, ...]]] = {
    "width of one hidden layer": {width: (width,) for width in (16, 64, 256, 1024, 2048)},
    "hidden layers of 256": {depth: (256,) * depth for depth in (1, 2, 4, 8, 16)},
}
EPOCHS = 2  # on the data
SPEED, MEMORY = "samples_per_second", "MiB"


def measure(lab: Lab, *, rounds: int, quick: bool) -> list[Row]:
    """A row for each round and size: samples a second, peak memory; for networks the ratio of the
    hand-written loop's seconds to ours, for data the seconds up to the training and of an epoch.
    """
    steps = [*_networks(quick=quick), *_data(quick=quick)]
    return [{"round": turn, **step(lab)} for turn in range(1, rounds + 1) for step in steps]


def _networks(*, quick: bool) -> Iterator[Callable[[Lab], Row]]:
    for kind, sizes in NETWORKS.items():
        for size, hidden in list(sizes.items())[: 1 if quick else None]:
            task = Task(hidden=hidden, images=10_240 if quick else 20_480, epochs=3)
            yield partial(_network, kind=kind, size=size, task=task)


def _data(*, quick: bool) -> Iterator[Callable[[Lab], Row]]:
    for count, side in DATA_SIZES[-3:-2] if quick else DATA_SIZES:
        yield partial(_rows, count=count, side=side)


def _network(lab: Lab, *, kind: str, size: int, task: Task) -> Row:
    run = lab.train(*overrides(task), callback="Rival")
    pairs = zip(run.epochs[1:], run.noted[1:], strict=True)
    ratio = median(epoch.speed * note["seconds"] / task.images for epoch, note in pairs)
    speed = median(epoch.speed for epoch in run.epochs[1:])
    return {"kind": kind, "size": size, SPEED: speed, MEMORY: run.usage.memory, "ratio": ratio}


def _rows(lab: Lab, *, count: int, side: int) -> Row:
    with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
        _write(Path(folder), rows=count, side=side)
        run = lab.train(
            *("data=idx", f"data.dir={folder}", "data.val_size=5000", "data.batch_size=1024"),
            *("model=shallow", f"trainer.max_epochs={EPOCHS}", "callbacks.early_stopping=null"),
        )
    print(f"{count:,} rows of {side}x{side}: {run.usage.seconds:.1f} s", flush=True)
    return {
        **{"kind": f"rows of {side}x{side}", "size": count, SPEED: run.epochs[-1].speed},
        **{MEMORY: run.usage.memory, "startup": run.metrics["time/startup_s"]},
        "epoch": run.metrics["time/fit_s"] / EPOCHS,
    }


def _write(folder: Path, *, rows: int, side: int) -> None:
    """MNIST over and over, its images shrunk to `side` pixels by means, as four IDX files."""
    for name in idx.NAMES:
        array = idx.read(DATA / name)
        if array.ndim == 3:
            array = _shrunk(array, side)
        count = rows if name.startswith("train") else len(array)
        idx.write(folder / name, np.resize(array, (count, *array.shape[1:])))


def _shrunk(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    block = images.shape[1] // side
    shrunk = images.reshape(-1, side, block, side, block).mean((2, 4))
    return np.asarray(shrunk, np.uint8)


def show(rows: Sequence[Row]) -> str:
    """A line for each size."""
    heads = ["", "size", "samples/s", MEMORY, "startup (s)", "epoch (s)", "over the loop"]
    forms = {SPEED: ",.0f", MEMORY: ",.0f", "startup": ".1f", "epoch": ".2f", "ratio": ".2f"}
    lines = []
    for (kind, size), mine in _by_size(rows).items():
        columns = {key: [row[key] for row in mine if key in row] for key in forms}
        shown = [spread(columns[key], form) if columns[key] else "" for key, form in forms.items()]
        lines.append([kind, f"{size:,}", *shown])
    return table(heads, *lines)


def draw(rows: Sequence[Row]) -> Figure:
    """Time of a sample and memory against each size."""
    panels: dict[str, dict[str, tuple[list[float], list[list[float]]]]] = {}
    for (kind, size), mine in _by_size(rows).items():
        panel = panels.setdefault(kind, {"µs a sample": ([], []), "memory (GiB)": ([], [])})
        for name, values in zip(
            panel,
            ([1e6 / row[SPEED] for row in mine], [row[MEMORY] / 1024 for row in mine]),
            strict=True,
        ):
            panel[name][0].append(size)
            panel[name][1].append(values)
    title = "Growth with the network and with the data"
    return charts.lines(panels, title=title, x="size", y="", log_x=True)


def _by_size(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["size"]), []).append(row)
    return groups
