"""One of the networks that are trained together: what it is trained by, and what comes of it."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from perceptrail.assignment import extras
from perceptrail.callbacks import Row
from perceptrail.config import Plain
from perceptrail.data.module import DataModule
from perceptrail.errors import UserError
from perceptrail.fused.update import OWN
from perceptrail.model import MLP
from perceptrail.network import Network
from perceptrail.schedules import DROPOUT_SCHEDULES
from perceptrail.training import Parts

if TYPE_CHECKING:
    from perceptrail.search.pruning import Pruning

State = dict[str, NDArray[Any]]
Course = tuple[str, Callable[[float], float]]  # a function of progress, by a name for what it does


@dataclass
class Outcome:
    """What has come of a training: each epoch's row, and why it failed, if it did.

    `states` holds the network's state_dict after the `best` epoch, counted from 0, and the `last`.
    """

    rows: list[Row] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    best_epoch: int = 0
    seconds: float = 0.0
    error: UserError | None = None


class Watched(NamedTuple):
    """A metric by which epochs are compared: which are better by more than `min_delta`."""

    metric: str
    mode: str  # min | max
    min_delta: float = 0.0


class Member:
    """A network in training, as seen from outside; `told` is its configuration as plain values."""

    def __init__(
        self, cfg: DictConfig, told: Plain, parts: Parts, pruning: "list[Pruning]"
    ) -> None:
        data, network, self.task, optimizer, schedule = parts
        if not isinstance(data, DataModule):
            raise UserError("data that stream")
        assert optimizer is not None and schedule is not None
        self.data, self.optimizer = data, optimizer
        self.network = network
        # The stack takes all members' examples from one table; only their number matters here.
        self.data.release()
        trainer = told["trainer"]
        self.seed, self.epochs = int(told["seed"]), int(trainer["max_epochs"])
        on_gpu = torch.cuda.is_available() and trainer["accelerator"] != "cpu"
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.graphs = on_gpu and bool(trainer["cuda_graphs"])
        self._precision: str = trainer["matmul_precision"]
        self._loss = str(told["task"]["loss"])
        self.store: str | None = told["tracking"]["uri"]
        self.regularization: dict[str, Any] = told["regularization"]
        self.factor: Course = (str(told["schedule"]), schedule)
        kind, *bounds = (told["dropout"][k] for k in ("schedule", "start", "end", "cutoff"))
        rate = DROPOUT_SCHEDULES[kind]
        self.dropout: Course = (str(told["dropout"]), lambda t: rate(t, *bounds))

        self.asked = list(told["metrics"])
        self.extras = extras(cfg, self.task)
        if on_gpu and self.extras is not None:
            self.task, self.extras = self.task.to(self.device), self.extras.to(self.device)
        self.outcome = Outcome()
        self.pruning = pruning
        self.monitored = Watched(**told["monitor"])
        stopping = told["callbacks"].get("early_stopping") or {"patience": math.inf}
        self.patience: float = stopping.get("patience", 3)  # epochs
        self.watched = Watched(
            metric=stopping.get("monitor", self.monitored.metric),
            mode=stopping.get("mode", "min"),
            min_delta=stopping.get("min_delta", 0.0),
        )

    @property
    def shape(self) -> Hashable:
        """What the members of a group have in common."""
        data = self.data
        options = {k: v for k, v in self.optimizer.keywords.items() if k not in OWN}
        sizes = (data.batch_size, data.n_train, data.n_val, self.epochs)
        device = (self.device, self.graphs, self._precision)
        options["task"] = self.task.name, self._loss
        options["metrics"] = self.asked
        network = _shape(self.network)
        return (str([*network, options]), self.optimizer.func, *device, *sizes)


def _shape(network: Network) -> list[Any]:
    """What networks of one stack have in common."""
    own = network.architecture
    if isinstance(network, MLP):
        parts = [own[name] for name in ("inputs", "outputs", "hidden", "activation", "norm")]
        return [*parts, *[bool(own.get(name)) for name in ("input_noise", "noise")]]
    node = dict(own["node"])
    others = [layer for layer in network.modules() if layer not in network.dropouts]
    held = [v for layer in others for v in vars(layer).values() if type(v) is float]
    if network.dropouts and node["dropout"] not in held:
        del node["dropout"]  # it is the rate of those layers, and nothing else
    parameters = [(k, v.shape, v.requires_grad) for k, v in network.named_parameters()]
    return [node, own["shape"], [type(layer) for layer in network.modules()], parameters]
