"""What passes before the first step, by part, beside the bare imports of what is used."""

import subprocess
import time
from collections.abc import Sequence

from benchmarks.contest import Lab, Row
from benchmarks.table import spread, table
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts

BARE = "import torch, pytorch_lightning, mlflow"
READ = f"from perceptrail.data.sets import mnist; mnist(dir={str(DATA)!r}).train()"
# Processes of their own, each of which does a part, and the interpreter's start.
PARTS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, pytorch_lightning": ["-c", "import torch, pytorch_lightning"],
    BARE: ["-c", BARE],
    "read and verify MNIST": ["-c", READ],
}
FIRST = "first step made"


def measure(lab: Lab, *, rounds: int, quick: bool) -> list[Row]:
    """A row for each round and part: seconds from the start of the process, and that as a ratio to
    the bare imports in the same round.
    """
    rows: list[Row] = []
    commands = {name: [lab.python, *arguments] for name, arguments in PARTS.items()}
    commands["compose the configuration"] = lab.command("train.py", "--cfg", "job")
    for turn in range(1, rounds + 1):
        seconds = {name: _seconds(lab, command) for name, command in commands.items()}
        one_step = ("+trainer.limit_train_batches=1", "trainer.max_epochs=1")
        run = lab.train(f"data.dir={DATA}", *one_step, callback="Stamps")
        seconds |= {f"train.py: {name}": value for name, value in run.noted[0].items()}
        seconds["train.py: one step and the end"] = run.usage.seconds
        rows += [
            {"round": turn, "part": part, "seconds": value, "ratio": value / seconds[BARE]}
            for part, value in seconds.items()
        ]
    return rows


def _seconds(lab: Lab, command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=lab.folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def show(rows: Sequence[Row]) -> str:
    """A line for each part."""
    lines = [["from the start of a process", "seconds", "over the bare imports"]]
    for part in dict.fromkeys(row["part"] for row in rows):
        columns = [
            [row[key] for row in rows if row["part"] == part] for key in ("seconds", "ratio")
        ]
        lines.append([part, *map(spread, columns)])
    return table(*lines)


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    parts: dict[str, list[float]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row["seconds"])
    return charts.dots({"": parts}, title="Up to the first step", x="seconds from the start")
