"""What passes before the first step, by part, and in commands on a stored run, beside the bare
imports of what is used.
"""

import subprocess
import time
from collections.abc import Sequence

from benchmarks.contest import Lab
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure
from PIL import Image

from perceptrail import charts
from perceptrail.data import idx

BARE = "import torch, pytorch_lightning, mlflow"
READ = f"from perceptrail.data.sets import mnist; mnist(dir={str(DATA)!r}).train()"
# Processes of their own, each of which does a part, and the interpreter's start.
CODE = {
    "python": "pass",
    "import torch": "import torch",
    "import torch, pytorch_lightning": "import torch, pytorch_lightning",
    BARE: BARE,
    "read and verify MNIST": READ,
}
PART, RATIO = "from the start of a process", "over the bare imports"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each part: seconds from the start of the process, and that as a ratio to the bare
    imports in the same round.
    """
    commands = {name: [lab.python, "-c", code] for name, code in CODE.items()}
    commands["compose the configuration"] = lab.command("train.py", "--cfg", "job")
    seconds = {name: _seconds(lab, command) for name, command in commands.items()}
    one_step = ("+trainer.limit_train_batches=1", "trainer.max_epochs=1")
    run = lab.train(f"data.dir={DATA}", *one_step, callback="Stamps")
    seconds |= {f"train.py: {name}": value for name, value in run.noted[0].items()}
    seconds["train.py: one step and the end"] = run.usage.seconds
    image = lab.folder / "digit.png"
    Image.fromarray(idx.read(DATA / idx.NAMES[2])[0]).save(image)
    stored = f"run={run.folder}"
    seconds["evaluate.py"] = _seconds(lab, lab.command("evaluate.py", stored))
    seconds["predict.py, an image"] = _seconds(
        lab, lab.command("predict.py", stored, f"image={image}")
    )
    bare = seconds[BARE]
    return [{PART: part, "seconds": s, RATIO: s / bare} for part, s in seconds.items()]


def _seconds(lab: Lab, command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=lab.folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def show(rows: Sequence[Row]) -> Lines:
    """A line for each part."""
    return summary(rows, (PART,), {"seconds": ".2f", RATIO: ".2f"})


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    seconds = panels(rows, "seconds", of=PART)
    return charts.dots(seconds, title="Up to the first step", x="seconds from the start")
