"""The task that the group `task` gives a run, made for its data."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from perceptrail.build import CLASSES, build, task_name
from perceptrail.data.dataset import Dataset
from perceptrail.data.module import DataModule
from perceptrail.errors import UserError
from perceptrail.tasks import Classification, Regression, Task


def own_loss(cfg: DictConfig) -> Any:
    """The loss that `task.loss` makes, if it is one's own."""
    node = OmegaConf.select(cfg, "task.loss")
    return build(node, key="task.loss") if isinstance(node, DictConfig) else None


def check(cfg: DictConfig, found: Dataset) -> None:
    """Raise `UserError` if a data set's targets are not what the task is about."""
    name, targets = task_name(cfg), ", ".join(found.targets or found.classes)
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
    if cfg.distillation.teacher and name != CLASSES:
        raise UserError(
            f"distillation.teacher={cfg.distillation.teacher}: must be null for task={name}"
        )


def assigned(cfg: DictConfig, data: DataModule) -> Task:
    """What the group `task` says is to be learned of the data.

    Raises `UserError` if a loss of one's own does not suit.
    """
    found, loss, y = data.dataset, own_loss(cfg), data.train_targets
    if task_name(cfg) == CLASSES:
        made: Task = Classification(found.classes, own_loss=loss)
    else:
        chosen = {} if loss is not None else {"loss": cfg.task.loss}
        made = Regression.of(found.targets, y, own_loss=loss, **chosen)
    if loss is not None:
        _check(made, y[:2], outputs=data.outputs)
    return made


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
