"""Learning from what another network predicts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceptrail import network as networks
from perceptrail import runs
from perceptrail.data.module import Data
from perceptrail.errors import UserError
from perceptrail.losses import probabilities

# Takes a batch; returns probabilities in place of its labels, as `losses.mean_loss` takes them.
Relabel = Callable[[Tensor, Tensor], Tensor]


def teaching(data: Data, *, teacher: str | None, weight: float) -> Relabel | None:
    """What mixes a stored run's predictions into the labels, if there is to be a `teacher`.

    Raises `UserError` if there is no such run, or it has learned from another kind of data.
    """
    if teacher is None:
        return None
    # The latest run would be another one when this one is resumed.
    folder = None if teacher == "latest" else runs.find(teacher, finished=True)
    if folder is None:
        raise UserError(
            f"distillation.teacher={teacher}: must be the directory or the MLflow id of a run here "
            "that has finished"
        )
    network, facts = networks.load(folder / runs.MODEL)
    if (facts["shape"], facts["classes"]) != (list(data.shape), list(data.classes)):
        raise UserError(
            f"distillation.teacher={teacher}: must know inputs of shape {data.shape} and the "
            f"classes {', '.join(data.classes)}, not {tuple(facts['shape'])} and "
            f"{', '.join(facts['classes'])}"
        )
    return partial(softened, teacher=network, weight=weight)


@torch.no_grad()
def softened(x: Tensor, y: Tensor, *, teacher: nn.Module, weight: float) -> Tensor:
    """Labels y [n] of inputs x [n, inputs], a share `weight` of which is what a teacher predicts.

    Hinton et al. 2015, arXiv:1503.02531, at temperature 1; with a teacher of the same shape,
    Furlanello et al. 2018, arXiv:1805.04770.
    """
    told = probabilities(teacher.to(x.device)(x))
    mixed = F.one_hot(y, told.shape[1]).to(told.dtype).lerp(told, weight)
    return mixed if mixed.shape[1] > 2 else mixed[:, 1]
