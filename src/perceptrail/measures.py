"""What says how good a network is: metrics by name, with their words, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    "exact": Measure("all labels right", ".2%"),
    "f1": Measure("F1"),
    "precision": Measure("precision"),
    "recall": Measure("recall"),
    "specificity": Measure("specificity"),
    "auroc": Measure("area under the ROC curve"),
    "average_precision": Measure("average precision"),
    "balanced_accuracy": Measure("balanced accuracy", ".2%"),
    "top5": Measure("among the first five", ".2%"),
    "mcc": Measure("Matthews' correlation"),
    "kappa": Measure("Cohen's kappa"),
    "ece": Measure("calibration error", highest=False),
    "mape": Measure("mean absolute error in proportion", ".2%", highest=False),
    "pearson": Measure("correlation"),
    "spearman": Measure("rank correlation"),
    "explained_variance": Measure("explained variance"),
}
ALIASES = {"accuracy": "acc"}


@dataclass(frozen=True)
class Extra:
    """A metric that is computed where it is asked for, by the class of torchmetrics called `kind`.

    For two classes it is that of the second, if not said otherwise; `per_number` says that it is
    to be told how many numbers there are.
    """

    kind: str
    tasks: tuple[str, ...]
    of_second: bool = True
    per_number: bool = False
    options: Mapping[str, int] = field(default_factory=dict)


_LABELS, _CLASSES, _NUMBERS = ("classification", "multilabel"), ("classification",), ("regression",)
EXTRAS: Mapping[str, Extra] = {
    "f1": Extra("F1Score", _LABELS),
    "precision": Extra("Precision", _LABELS),
    "recall": Extra("Recall", _LABELS),
    "specificity": Extra("Specificity", _LABELS),
    "auroc": Extra("AUROC", _LABELS),
    "average_precision": Extra("AveragePrecision", _LABELS),
    "balanced_accuracy": Extra("Accuracy", _CLASSES, of_second=False),
    "top5": Extra("Accuracy", _CLASSES, of_second=False, options={"top_k": 5}),
    "mcc": Extra("MatthewsCorrCoef", _CLASSES),
    "kappa": Extra("CohenKappa", _CLASSES),
    "ece": Extra("CalibrationError", _CLASSES, of_second=False),
    "mape": Extra("MeanAbsolutePercentageError", _NUMBERS),
    "pearson": Extra("PearsonCorrCoef", _NUMBERS, per_number=True),
    "spearman": Extra("SpearmanCorrCoef", _NUMBERS, per_number=True),
    "explained_variance": Extra("ExplainedVariance", _NUMBERS),
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
    "multilabel": Kind(("acc", "exact"), "classifier", "labels"),
}


def available(task: str) -> list[str]:
    """What `metrics` may name for a task."""
    extra = [name for name, made in EXTRAS.items() if task in made.tasks]
    own = KINDS[task].measures
    return [*own, *(name for name, of in ALIASES.items() if of in own), *extra]


def measure(name: str) -> Measure:
    """The measure behind a metric's name, such as val/acc; one that is not known has its name."""
    known = name.rpartition("/")[2]
    return MEASURES.get(known) or Measure(known)


def said(metrics: Mapping[str, float]) -> str:
    """Metrics but for the loss, in words."""
    return ", ".join(
        f"{measure(name).words} {value:{measure(name).form}}"
        for name, value in metrics.items()
        if name != "loss"
    )
