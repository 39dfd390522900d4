"""Which figures a run gets, drawn into its directory."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perceptrail import diagrams, figures
from perceptrail.data.dataset import Dataset, as_float
from perceptrail.losses import probabilities
from perceptrail.network import Network
from perceptrail.prediction import Judgement, logits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def draw_training(
    folder: Path,
    network: Network,
    rows: Sequence[Mapping[str, float]],
    *,
    best_epoch: int,
    shape: tuple[int, ...],
    task: str,
) -> list[Path]:
    """How the training went and, for images, what the first layer looks at."""
    drawn: dict[str, Figure] = {
        "learning_curves": figures.learning_curves(rows, best_epoch=best_epoch, task=task)
    }
    if len(shape) == 2:
        weights = network.weights[0].detach().cpu().flatten(1).numpy()
        size = (*network.weights[0].shape[2:],) or shape  # convolutions look at a part at a time
        if weights.shape[1] == math.prod(size):
            drawn["first_layer_weights"] = figures.first_layer_weights(weights, shape=size)
    return _save(folder, drawn)


def draw_judgement(
    folder: Path,
    network: Network,
    x: NDArray[Any],
    y: NDArray[Any],
    judgement: Judgement,
    *,
    dataset: Dataset,
    task: str,
) -> list[Path]:
    """What was taken for what; of images some and the worst mistakes, of 2-D data the boundary.

    Of two classes, and of labels, also the ROC curve and how far probabilities can be believed. Of
    numbers, what was told against what is true, and the differences.
    """
    shape, classes = dataset.shape, dataset.classes
    if task == "multilabel":
        both = diagrams.roc_and_reliability(
            y.reshape(len(y), -1).astype(int), judgement.probability, names=dataset.targets
        )
        return _save(folder, {"roc_and_reliability": both})
    if not classes:
        true = y.reshape(len(y), -1)
        return _save(
            folder,
            {
                "predicted_against_true": diagrams.predicted_against_true(
                    true, judgement.predicted, names=dataset.targets
                ),
                "residuals": diagrams.residuals(true, judgement.predicted, names=dataset.targets),
            },
        )
    drawn: dict[str, Figure] = {
        "confusion_matrix": figures.confusion_matrix(judgement.counts, classes=classes)
    }
    if len(classes) == 2:
        drawn["roc_and_reliability"] = diagrams.roc_and_reliability(
            y[:, None], judgement.probability[:, 1:], names=classes[1:]
        )
    if len(shape) > 1:
        images = as_float(x).reshape(-1, *shape)
        for draw in (figures.sample_images, figures.worst_mistakes):
            drawn[draw.__name__] = draw(
                np.moveaxis(images, 1, -1) if len(shape) == 3 else images,
                true=y,
                predicted=judgement.predicted,
                probability=judgement.probability.max(1),
                classes=classes,
            )
    elif shape == (2,):
        grid, probability = _probability_on_grid(network, x)
        drawn["decision_boundary"] = figures.decision_boundary(
            x, y, grid=grid, probability=probability, classes=classes
        )
    return _save(folder, drawn)


def _probability_on_grid(network: Network, x: NDArray[np.float32], size: int = 200) -> Any:
    low, high = x.min(0), x.max(0)
    margin = 0.1 * (high - low)
    axes = [
        np.linspace(a, b, size, dtype=np.float32)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    xx, yy = np.meshgrid(*axes)
    points = np.stack([xx.ravel(), yy.ravel()], 1)
    probability = probabilities(logits_of(network, points)).numpy()
    return (xx, yy), probability.reshape(size, size, -1)


def _save(folder: Path, drawn: Mapping[str, "Figure"]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths
