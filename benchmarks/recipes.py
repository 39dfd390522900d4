"""What helps a network of two hidden layers on MNIST, by validation accuracy: one seed a round."""

from collections.abc import Sequence

from benchmarks.contest import Lab, Run
from benchmarks.table import Lines, Row, panels, summary
from benchmarks.task import DATA
from matplotlib.figure import Figure

from perceptrail import charts

EPOCHS = 12
BASE = (
    *("experiment=mnist_best", f"data.dir={DATA}", "model.hidden=[512,512]"),
    *("regularization.adversarial=0", "optimizer.weight_decay=0.01"),
)
TAUGHT = "taught by the first of these"
RECIPES: dict[str, tuple[str, ...]] = {
    "512-512, batch norm, one cycle": (),
    "no norm": ("model.norm=null", "optimizer.lr=1e-3"),
    "constant rate": ("schedule=constant", "optimizer.lr=1e-3"),
    "1024-1024": ("model.hidden=[1024,1024]",),
    "512-512-512": ("model.hidden=[512,512,512]",),
    "weight decay 0.3": ("optimizer.weight_decay=0.3",),
    "dropout 0.2, inputs 0.1": ("model.dropout=0.2", "model.input_dropout=0.1"),
    "dropout 0.4, falling to 0": ("model.dropout=0.4", "dropout=linear"),
    "noise 0.3, inputs 0.3": ("model.noise=0.3", "model.input_noise=0.3"),
    "label smoothing 0.1": ("regularization.label_smoothing=0.1",),
    "weight averaging": ("callbacks=averaged", "callbacks.early_stopping=null"),
    TAUGHT: (),
    "adversarial 0.05": ("regularization.adversarial=0.05",),
    "adversarial 0.1": ("regularization.adversarial=0.1",),
    "adversarial 0.1, 512-512-512, weight decay 0.3": (
        *("regularization.adversarial=0.1", "model.hidden=[512,512,512]"),
        "optimizer.weight_decay=0.3",
    ),
    "rotated, scaled, elastic": (
        "data.augment={rotate: 15, scale: 0.15, elastic_alpha: 36, elastic_sigma: 5}",
    ),
}
ACCURACY = "validation accuracy (%)"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each recipe: the accuracy of its best epoch, and the minutes of training, those of
    a teacher included.
    """
    length = (f"trainer.max_epochs={1 if quick else EPOCHS}", f"seed={turn - 1}")
    short = ("data.train_size=2560",) if quick else ()
    rows: list[Row] = []
    runs: dict[str, Run] = {}
    for name, given in RECIPES.items():
        teachers = list(runs.values())[:1] if name == TAUGHT else []
        taught = [f"distillation.teacher={teacher.folder}" for teacher in teachers]
        runs[name] = lab.train(*BASE, *length, *short, *given, *taught, "tracking=none")
        seconds = sum(run.metrics["time/fit_s"] for run in (runs[name], *teachers))
        accuracy = 100 * runs[name].metrics["best/val/acc"]
        rows.append({"recipe": name, ACCURACY: accuracy, "minutes": seconds / 60})
    return rows


def show(rows: Sequence[Row]) -> Lines:
    """A line for each recipe."""
    return summary(rows, ("recipe",), {ACCURACY: ".2f", "minutes": ".1f"})


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each seed."""
    title = f"What {EPOCHS} epochs on MNIST come to"
    return charts.dots(panels(rows, ACCURACY, of="recipe"), title=title, x=ACCURACY)
