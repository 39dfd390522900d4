"""How time and memory grow with the data, with a network's width and depth, and with networks
trained as one.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from benchmarks.contest import Lab, Usage, overrides
from benchmarks.table import Lines, Row, summary
from benchmarks.task import DATA, Task
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceptrail import charts
from perceptrail.data import idx

# Rows and the side of an image: the last are 19 GB of numbers.
DATA_SIZES = ((60_000, 7), (600_000, 7), (6_000_000, 7), *((6 * 10**n, 28) for n in (4, 5, 6)))
WIDTHS, DEPTHS, MEMBERS = (64, 256, 1024, 2048), (1, 4, 16), (1, 4, 16, 64)
TASK = Task(images=10_240, epochs=3)
TIME, MEMORY, START = "µs a row", "MiB", "seconds to the training"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each size: time of a row of the data in the last epoch, peak memory, and for
    data the start-up.
    """
    end = 1 if quick else None
    return [
        *(_network(lab, "width of one layer", w, (w,)) for w in WIDTHS[:end]),
        *(_network(lab, "layers of 256", n, (256,) * n) for n in DEPTHS[:end]),
        *(_members(lab, count) for count in MEMBERS[:end]),
        *(_data(lab, rows, side) for rows, side in (DATA_SIZES[:1] if quick else DATA_SIZES)),
    ]


def _row(kind: str, size: int, metrics: Row, usage: Usage) -> Row:
    time = 1e6 / metrics["train/samples_per_second"]
    return {"growth": kind, "size": size, TIME: time, MEMORY: usage.memory}


def _network(lab: Lab, kind: str, size: int, hidden: tuple[int, ...]) -> Row:
    run = lab.train(*overrides(replace(TASK, hidden=hidden)), "tracking=none")
    return _row(kind, size, run.metrics, run.usage)


def _members(lab: Lab, count: int) -> Row:
    given = overrides(replace(TASK, hidden=(64,)), jobs=count)
    jobs = lab.multirun(*given, "tracking=none", "hydra/launcher=fused")
    return _row("members of 784-64-10", count, jobs.metrics[0], jobs.usage)


def _data(lab: Lab, rows: int, side: int) -> Row:
    with tempfile.TemporaryDirectory(dir=lab.folder) as folder:
        # Apart, since a process counts as its own what the one that started it has needed.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            apart.submit(_write, Path(folder), rows=rows, side=side).result()
        run = lab.train(
            *("data=idx", f"data.dir={folder}", "data.val_size=5000", "data.batch_size=1024"),
            *("model=shallow", "trainer.max_epochs=2", "tracking=none", "figures=false"),
        )
    row = _row(f"rows of {side}x{side}", rows, run.metrics, run.usage)
    return {**row, START: run.metrics["time/startup_s"]}


def _write(folder: Path, *, rows: int, side: int) -> None:
    """MNIST over and over, its images shrunk to `side` pixels by means, as four IDX files."""
    for name in idx.NAMES:
        array = idx.read(DATA / name)
        if array.ndim == 3:
            array = _shrunk(array, side)
        count = rows if name.startswith("train") else len(array)
        times, rest = divmod(count, len(array))
        head = idx.header((count, *array.shape[1:]))
        with (folder / name).open("wb") as file:
            file.write(head)
            for _ in range(times):
                file.write(array.tobytes())
            file.write(array[:rest].tobytes())


def _shrunk(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    block = images.shape[1] // side
    shrunk = images.reshape(-1, side, block, side, block).mean((2, 4))
    return np.asarray(shrunk, np.uint8)


def show(rows: Sequence[Row]) -> Lines:
    """A line for each size."""
    return summary(rows, ("growth", "size"), {TIME: ".1f", MEMORY: ",.0f", START: ".1f"})


def draw(rows: Sequence[Row]) -> Figure:
    """Time and memory against each size."""
    drawn = {TIME: 1.0, "memory (GiB)": 1 / 1024}
    series: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        for (name, factor), value in zip(drawn.items(), (row[TIME], row[MEMORY]), strict=True):
            curve = series.setdefault(row["growth"], {}).setdefault(name, {})
            curve.setdefault(row["size"], []).append(factor * value)
    curves = {
        kind: {name: (list(of_size), list(of_size.values())) for name, of_size in panel.items()}
        for kind, panel in series.items()
    }
    return charts.lines(curves, title="Growth with data and networks", x="size", y="", log_x=True)
