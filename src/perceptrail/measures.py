"""What says how good a network is: metrics by name, with their words, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A metric: what it is called, how its value is written, and whether more of it is better."""

    words: str
    form: str = ".4f"
    highest: bool = True


MEASURES: Mapping[str, Measure] = {
    "loss": Measure("loss", highest=False),
    "acc": Measure("accuracy", ".2%"),
    "r2": Measure("R²"),
    "mae": Measure("mean absolute error", ".4g", highest=False),
    "rmse": Measure("root mean square error", ".4g", highest=False),
}


@dataclass(frozen=True)
class Kind:
    """A kind of task: what is always computed beside its loss, and what comes of a model of it.

    By the first measure a run is known. A model's answers have a column of text, if `text` names
    it, and one of numbers for each class or target.
    """

    measures: tuple[str, ...]
    model: str  # as MLflow calls it
    text: str | None = None


KINDS: Mapping[str, Kind] = {
    "classification": Kind(("acc",), "classifier", "label"),
    "regression": Kind(("r2", "mae", "rmse"), "regressor"),
}


def measure(name: str) -> Measure:
    """The measure behind a metric's name, such as val/acc."""
    return MEASURES[name.rpartition("/")[2]]


def said(metrics: Mapping[str, float]) -> str:
    """Metrics but for the loss, in words."""
    return ", ".join(
        f"{measure(name).words} {value:{measure(name).form}}"
        for name, value in metrics.items()
        if name != "loss"
    )
