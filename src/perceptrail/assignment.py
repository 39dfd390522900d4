"""The task that the group `task` gives a run, made for its data."""

from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from perceptrail.build import CLASSES, build, task_name
from perceptrail.config import OWN
from perceptrail.data.dataset import Dataset
from perceptrail.errors import UserError
from perceptrail.measures import EXTRAS
from perceptrail.tasks import Classification, Multilabel, Regression, Task

if TYPE_CHECKING:  # they import Lightning and torchmetrics
    from perceptrail.data.module import Data
    from perceptrail.extras import Extras


def own_loss(cfg: DictConfig) -> Any:
    """The loss that `task.loss` makes, if it is one's own."""
    node = OmegaConf.select(cfg, "task.loss") if task_name(cfg) != OWN else None
    return build(node, key="task.loss") if isinstance(node, DictConfig) else None


def check(cfg: DictConfig, found: Dataset) -> None:
    """Raise `UserError` if a data set's targets are not what the task is about."""
    name, targets = task_name(cfg), ", ".join(found.targets or found.classes)
    if name == OWN:
        return
    if name == CLASSES and not found.classes:
        raise UserError(
            f"task={name}: the targets of {found.name} ({targets}) are numbers, and must be "
            "classes: data.kind=classes takes each number for one; task=regression tells numbers"
        )
    if name != CLASSES and found.classes:
        raise UserError(
            f"task={name}: the targets of {found.name} are the classes {targets}, and must be "
            "numbers"
        )
    weights = OmegaConf.select(cfg, "task.class_weights")
    if cfg.distillation.teacher and (name != CLASSES or weights is not None):
        against = f"task={name}" if weights is None else "task.class_weights"
        raise UserError(
            f"distillation.teacher={cfg.distillation.teacher}: must be null for {against}"
        )


def assigned(cfg: DictConfig, data: "Data") -> Task:
    """What the group `task` says is to be learned of the data.

    Of a module of one's own it is what its outputs are taken for: logits of the classes, or numbers
    in their own units. Raises `UserError` if a loss of one's own does not suit.
    """
    found, loss, y = data.dataset, own_loss(cfg), data.train_targets
    made: Task
    if task_name(cfg) == OWN:
        if found.classes:
            return Classification(found.classes)
        numbers = len(found.targets)
        return Regression(found.targets, mean=[0.0] * numbers, std=[1.0] * numbers)
    if task_name(cfg) == CLASSES:
        weights = _weights(
            OmegaConf.select(cfg, "task.class_weights"), y, classes=len(found.classes)
        )
        made = Classification(found.classes, class_weights=weights, own_loss=loss)
    elif task_name(cfg) == Multilabel.name:
        _check_labels(found, torch.cat([y, data.val_targets]))
        made = Multilabel(found.targets, own_loss=loss)
    else:
        kind = {} if loss is not None else {"loss": cfg.task.loss}
        made = Regression.of(found.targets, y, own_loss=loss, **kind)
    if loss is not None:
        _check(made, y[:2], outputs=data.outputs)
    return made


def _weights(chosen: Any, y: Tensor, *, classes: int) -> list[float] | None:
    if chosen == "balanced":
        return Classification.balanced(y, classes=classes)
    if chosen is not None and len(chosen) != classes:
        raise UserError(
            f"task.class_weights={chosen}: must hold a number for each of the {classes} classes"
        )
    return None if chosen is None else [float(weight) for weight in chosen]


def _check_labels(found: Dataset, y: Tensor) -> None:
    wrong = y[(y != 0) & (y != 1)]
    if len(wrong):
        raise UserError(
            f"task=multilabel: the targets of {found.name} ({', '.join(found.targets)}) must be 0 "
            f"or 1, not {float(wrong[0]):g}"
        )


def _check(task: Task, y: Tensor, *, outputs: int) -> None:
    """Raise `UserError` unless a loss of one's own makes one number of two examples."""
    try:
        value = task.loss(torch.zeros(len(y), outputs), y)
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"task.loss: must take outputs and targets; {line}") from error
    if not isinstance(value, Tensor) or value.shape:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"task.loss: must return the mean loss, a scalar tensor, not {shape}")


def extras(cfg: DictConfig, task: Task) -> "Extras | None":
    """The metrics that `metrics` names beside the task's own, if there are any."""
    chosen = [name for name in OmegaConf.select(cfg, "metrics", default=()) if name in EXTRAS]
    if not chosen:
        return None
    from perceptrail.extras import Extras  # torchmetrics, with all that it imports

    return Extras(chosen, task)
