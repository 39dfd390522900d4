"""Predictions of a trained network: in bulk, and as MLflow serves them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceptrail import tasks
from perceptrail.data.dataset import Part, as_float
from perceptrail.network import load
from perceptrail.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    import pandas as pd

    from perceptrail.extras import Extras

CHUNK = 8192  # examples at once: enough for full speed, little memory


@torch.inference_mode()
def logits_of(network: nn.Module, x: NDArray[Any]) -> Tensor:
    """Outputs [n, outputs] of a network for raw inputs [n, inputs], in chunks, without dropout."""
    network.eval()
    return torch.cat([network(torch.from_numpy(as_float(part))) for part in _chunks(x)])


def _chunks(x: NDArray[Any]) -> list[NDArray[Any]]:
    return [x[i : i + CHUNK] for i in range(0, max(len(x), 1), CHUNK)]


@dataclass(frozen=True)
class Judgement:
    """How a network did on examples whose targets are known, and what each was taken for."""

    metrics: dict[str, float]  # the loss, then the task's measures
    predicted: NDArray[Any]  # labels [n], or numbers [n, targets] in their own units
    probability: NDArray[np.float32]  # [n, classes or labels], of which numbers have none
    counts: NDArray[np.int64]  # [true class, predicted class]

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.metrics["loss"]

    @property
    def accuracy(self) -> float:
        """The share of labels that are right."""
        return self.metrics["acc"]


@torch.inference_mode()
def judge(
    network: nn.Module,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    task: Task | None = None,
    extras: "Extras | None" = None,
    rest: Iterable[Part] = (),
) -> Judgement:
    """Predict inputs [n, inputs] and compare with targets y: labels, if no task is given.

    Among the metrics are those of `extras`. They are of the `rest` of the examples, too, which may
    be too many to be held in memory.
    """
    task = task.cpu() if task else Classification()
    outputs, true = logits_of(network, x), torch.from_numpy(y)
    sums, n = task.sums(outputs, true), len(y)
    if extras is not None:
        extras.cpu().update(task, outputs, true)
    for more in rest:
        told, y_more = logits_of(network, more[0]), torch.from_numpy(more[1])
        sums, n = sums + task.sums(told, y_more), n + len(y_more)
        if extras is not None:
            extras.update(task, told, y_more)
    found = task.metrics(sums, n)
    if extras is not None:
        found |= extras.compute()
    predicted, counts = task.predicted(outputs), torch.empty(0, 0, dtype=torch.int64)
    numbers = isinstance(task, Regression)
    probability = torch.empty(len(y), 0) if numbers else task.said(outputs)
    if isinstance(task, Classification):
        k = probability.shape[1]
        counts = torch.bincount(true * k + predicted, minlength=k**2).reshape(k, k)
    return Judgement(
        metrics={name: float(value) for name, value in found.items()},
        predicted=predicted.numpy(),
        probability=probability.numpy(),
        counts=counts.numpy(),
    )


class Predictor:
    """A stored model as a service: raw inputs in; out comes what its task has to say of them.

    Of classes, the label and each class's probability; of numbers, each of them.
    """

    def __init__(self, folder: Path) -> None:
        self._network, self._facts = load(folder)
        self._task = tasks.read(self._facts)

    def predict(self, x: object, params: object = None) -> "pd.DataFrame":
        """Predict inputs [n, inputs], an array or a data frame; one row an input.

        A model of a table takes a data frame with the columns of that, too.
        """
        import pandas as pd  # a second; training needs none of it

        outputs = logits_of(self._network, self._rows(x))
        return pd.DataFrame(self._task.answers(outputs))

    def _rows(self, x: Any) -> NDArray[Any]:
        if "columns" in self._facts and hasattr(x, "columns"):
            from perceptrail.data.table import Columns

            columns = Columns(**self._facts["columns"])
            if not {*columns.numbers, *columns.categories}.isdisjoint(map(str, x.columns)):
                return columns.rows(x, said="input")
        return np.ascontiguousarray(x, dtype=np.float32)


def _load_pyfunc(path: str) -> Predictor:  # the name MLflow looks for in a loader module
    return Predictor(Path(path))
