"""Modules of one's own as one: `torch.func` has each of their operations done for all at once."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from perceptrail.network import Module
from perceptrail.replay import listens
from perceptrail.tasks import Task

# Floating-point operations, forward on a batch, beyond which a processor gains nothing by doing
# them for several networks at once: below it is mostly 1.1 to 30 times as fast, above half to 1.
LARGE = 40e6


class Dropout(nn.Module):
    """PyTorch's dropout of values, or of channels, at a rate that each member has for itself."""

    rate: Tensor

    def __init__(self, layer: _DropoutNd) -> None:
        super().__init__()
        if type(layer) not in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
            raise TypeError(f"{type(layer).__name__}: its rate cannot be each member's own")
        self._of_values = type(layer) is nn.Dropout
        self.register_buffer("rate", torch.tensor(layer.p), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share of x [batch, ...] while training, and scale up the rest."""
        if not self.training:
            return x
        shape = x.shape if self._of_values else (*x.shape[:2], *[1] * (x.dim() - 2))
        kept = torch.rand(shape, device=x.device) >= self.rate
        return x * kept / (1 - self.rate).clamp(min=1e-7)


class Vmapped:
    """Modules that differ in parameters, buffers and the rate of their argument `dropout` only.

    Like a `Stack`, it maps standardised inputs [members, batch, inputs] to outputs.
    """

    def __init__(self, networks: Sequence[Module], *, device: torch.device) -> None:
        first, bodies = networks[0], [network.body for network in networks]
        self._shaped = first.shaped
        layers = dict(first.body.named_modules(remove_duplicate=False))
        scheduled = [name for name, layer in layers.items() if layer in first.dropouts]
        self._template = deepcopy(first.body).to(device)
        rates = {}
        for name in scheduled:
            self._template.set_submodule(name, Dropout(cast(_DropoutNd, layers[name])))
            own = [cast(_DropoutNd, body.get_submodule(name)).p for body in bodies]
            rates[f"{name}.rate"] = torch.tensor(own, device=device)
        self._rates = list(rates)
        self._parameters = {
            name: torch.stack([body.get_parameter(name).detach() for body in bodies])
            .to(device)
            .requires_grad_(parameter.requires_grad)
            for name, parameter in first.body.named_parameters()
        }
        self._buffers = rates | {
            name: torch.stack([body.get_buffer(name) for body in bodies]).to(device)
            for name, _ in first.body.named_buffers()
        }
        own_names = [*first.body.named_parameters(), *first.body.named_buffers()]
        names = {id(value): name for name, value in own_names}  # one, of those that share a tensor
        state = first.body.state_dict(keep_vars=True)
        self._stored = {f"body.{key}": names[id(value)] for key, value in state.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned, [members, ...] each."""
        return [value for value in self._parameters.values() if value.requires_grad]

    @property
    def weights(self) -> list[Tensor]:
        """The weights [members, fan_out, ...], without biases and the scales of norms."""
        return [value for value in self._parameters.values() if value.dim() > 2]

    @property
    def state(self) -> dict[str, Tensor]:
        """What `Module.state_dict` holds, for all members."""
        own = {**self._parameters, **self._buffers}
        return {key: own[name].detach() for key, name in self._stored.items()}

    def set_dropout(self, rates: Tensor, *, on: bool | None = None) -> None:
        """Set the members' rates [members] of the layers that begin with their argument's."""
        for name in self._rates:
            self._buffers[name].copy_(rates)

    def keep(self, members: list[int]) -> None:
        """Go on with these members alone."""
        for own in (self._parameters, self._buffers):
            for name, value in own.items():
                own[name] = value.detach()[members].requires_grad_(value.requires_grad)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [members, batch, outputs] of standardised inputs."""
        return self._forward(x, training=False)

    def learn(self, x: Tensor, loss: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Leave the gradients of the members' losses in the parameters, as `Stack.learn`."""
        outputs = self._forward(x, training=True)
        losses, gradient = loss(outputs.detach())
        outputs.backward(gradient)
        return losses

    def _forward(self, x: Tensor, *, training: bool) -> Tensor:
        if self._template.training != training:
            self._template.train(training)
        together = torch.vmap(self._of_one, randomness="different")
        y: Tensor = together(self._parameters, self._buffers, x)
        return y

    def _of_one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> Tensor:
        given = parameters | buffers
        own = dict(given)
        y: Tensor = functional_call(self._template, own, (self._shaped(x),))
        for name, value in given.items():
            if own[name] is not value:
                raise TypeError(f"another tensor is put in the place of {name}")
        return y


def obstacle(network: Module, other: Module, *, inputs: int, batch: int) -> str | None:
    """Why a module cannot be part of a stack with another, if it cannot.

    It is tried, on two examples, and has to answer as by itself.
    """
    if listens(network.body):
        return "a hook on it would be told of all members at once"
    x, outputs = torch.randn(2, 2, inputs), []
    try:
        with _trial(), torch.no_grad():
            stack = Vmapped([other, network], device=torch.device("cpu"))
            with FlopCounterMode(display=False) as counter:
                for own, rows in zip((other, network), x, strict=True):
                    outputs.append(own.body.eval()(own.shaped(rows)))
            if not torch.allclose(stack(x), torch.stack(outputs), rtol=1e-3, atol=1e-4):
                return "what it answers does not follow from inputs, parameters and buffers alone"
            for _ in range(2):
                with torch.enable_grad():
                    stack.learn(x, lambda y: (y.mean((1, 2)), torch.ones_like(y)))
    except Exception as error:
        return _refusal(error)
    finally:
        for own in (other, network):
            own.train()
    flops = counter.get_total_flops() / 4 * batch
    if flops > LARGE and not torch.cuda.is_available():
        return f"large enough to be as fast alone ({flops / 1e6:.0f} MFLOP a batch)"
    return None


def loss_obstacle(task: Task, y: Tensor, *, outputs: int) -> str | None:
    """Why a loss of one's own cannot be that of a stack, if it cannot; tried as a module is."""
    if any(True for _ in task.parameters()):
        return "it has parameters of its own"
    x = torch.randn(2, len(y), outputs)
    try:
        with _trial():
            expected = torch.stack([task.loss(rows, y) for rows in x])
            losses, _ = task.stacked([task, task]).losses_and_slopes(x, torch.stack([y, y]))
    except Exception as error:
        return _refusal(error)
    if not torch.allclose(losses, expected, rtol=1e-3, atol=1e-4):
        return "it does not follow from outputs and targets alone"
    return None


@contextmanager
def _trial() -> Iterator[None]:
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Members would be done one after the other, and more slowly than alone.
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def _refusal(error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0].partition(". ")[0]
    return f"torch.vmap cannot have it ({reason})"
