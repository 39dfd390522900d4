"""torchmetrics' metrics by name, of all validation examples at once."""

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import final

import torchmetrics
import torchmetrics.classification
import torchmetrics.regression
from torch import Tensor, nn

from perceptrail.errors import UserError
from perceptrail.measures import EXTRAS
from perceptrail.tasks import Classification, Multilabel, Task


@final
class Extras(nn.Module):
    """The metrics that are named in `names`, of a task's outputs; those that it has are left out.

    Of two classes, `f1` and its like are those of the second; of more, and of labels, the mean over
    them. Raises `UserError` if one cannot be computed.
    """

    def __init__(self, names: Sequence[str], task: Task) -> None:
        super().__init__()
        self._task = task.name
        self._made = nn.ModuleDict({name: _make(name, task) for name in names if name in EXTRAS})

    def update(self, task: Task, outputs: Tensor, y: Tensor) -> None:
        """Take note of a batch."""
        told, target = task.told(outputs, y)
        for metric in self._made.values():
            assert isinstance(metric, torchmetrics.Metric)
            two = type(metric).__name__.startswith("Binary")
            metric.update(told[:, 1] if two else told, target)

    def compute(self) -> dict[str, Tensor]:
        """The metrics of what was noted, by all processes; it is forgotten."""
        found = {}
        for name, metric in self._made.items():
            assert isinstance(metric, torchmetrics.Metric)
            found[name] = metric.compute().float().mean()  # a perfect mcc is an integer
            metric.reset()
        return found


def _make(name: str, task: Task) -> torchmetrics.Metric:
    extra, several = EXTRAS[name], len(task.names)
    kind, options = extra.kind, dict(extra.options)
    where: ModuleType = torchmetrics.classification
    if isinstance(task, Multilabel):
        kind, options["num_labels"] = f"Multilabel{kind}", several
    elif isinstance(task, Classification) and (several > 2 or not extra.of_second):
        kind, options["num_classes"] = f"Multiclass{kind}", several
    elif isinstance(task, Classification):
        kind = f"Binary{kind}"
    else:
        where = torchmetrics.regression
        options |= {"num_outputs": several} if extra.per_number else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it keeps what it is given
            made: torchmetrics.Metric = getattr(where, kind)(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"metrics: {name}: {str(error).strip().splitlines()[0]}") from error
    return made
