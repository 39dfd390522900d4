"""One step for a stack: penalties, bounds and PyTorch's own update, at each member's settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, RMSprop

from perceptrail.stepping import Step

# Whether weight decay is apart from the gradient. In all of them the step is proportional to the
# rate and, but for the decay, depends on the weights through the gradient alone.
DECOUPLED: Mapping[Any, bool] = {SGD: False, Adam: False, AdamW: True, RMSprop: False}
OWN = ("lr", "weight_decay")  # the options in which members may differ
OFF = {"l1": 0.0, "l2": 0.0, "gradient_clip": math.inf, "max_norm": math.inf}


class Update:
    """Steps for parameters [members, ...] by one optimizer class.

    Members share its `options`, but each has its `decays`, and its own `bounds`: lists [members] by
    the names in `OFF`. Where they are `alike` in rates and decays, the optimizer moves the
    parameters; else it moves zeros at rate 1, and where they went, times each member's rate, is the
    step.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        kind: Callable[..., Any],
        options: Mapping[str, Any],
        *,
        decays: Sequence[float],
        bounds: Mapping[str, Sequence[float]],
        alike: bool,
    ) -> None:
        device = parameters[0].device
        self._decay = torch.tensor(decays, dtype=torch.float32, device=device)
        self._decoupled = options.get("decoupled_weight_decay", DECOUPLED[kind])
        self._decays, self._alike = any(decays), alike
        self._bounds = {
            name: torch.tensor(values, dtype=torch.float32, device=device)
            for name, values in bounds.items()
            if any(value != OFF[name] for value in values)
        }
        zeros = [] if alike else [torch.zeros_like(p).requires_grad_() for p in parameters]
        self._moved = zeros or list(parameters)
        own = {name: value for name, value in options.items() if name not in OWN}
        decay = decays[0] if alike else 0.0
        self.optimizer = kind(self._moved, **own, lr=1.0, weight_decay=decay)
        self._step = Step(self.optimizer)
        self._rates = torch.ones_like(self._decay)  # unless they are alike

    def set_rate(self, rate: Tensor | float) -> None:
        """Set the rates [members] or, if they are alike, the one rate of the steps that follow."""
        if isinstance(rate, Tensor):
            self._rates.copy_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor | float:
        """Make a step by the parameters' gradients.

        Returns the penalties that belong to the loss, [members] or 0.
        """
        penalty = self._penalise(weights)
        if "gradient_clip" in self._bounds:
            self._clip([p.grad for p in parameters if p.grad is not None])
        if self._alike:
            self._step()
            self._step.forget()
        else:
            self._move(parameters, self._rates)
        if "max_norm" in self._bounds:
            for weight in weights[:-1] or weights:  # as Classifier does for one network
                rows = weight.flatten(2)
                length = torch.linalg.vector_norm(rows, dim=2, keepdim=True)
                bound = column(self._bounds["max_norm"], rows)
                shorter = torch.where(length > bound, rows * bound / (length + 1e-7), rows)
                weight.copy_(shorter.view_as(weight))
        return penalty

    def _penalise(self, weights: Sequence[Tensor]) -> Tensor | float:
        penalty: Tensor | float = 0.0
        for weight in weights if self._bounds.keys() & {"l1", "l2"} else ():
            if weight.grad is None and weight.requires_grad:  # it has a part in these alone
                weight.grad = torch.zeros_like(weight)
            if "l1" in self._bounds:
                l1 = self._bounds["l1"]
                _add(weight, weight.sign(), l1)
                penalty = penalty + l1 * weight.abs().flatten(1).sum(1)
            if "l2" in self._bounds:
                l2 = self._bounds["l2"]
                _add(weight, weight, l2)
                penalty = penalty + l2 / 2 * weight.square().flatten(1).sum(1)
        return penalty

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        squares = [g.flatten(1).square().sum(1) for g in gradients]
        length = torch.stack(squares).sum(0).sqrt()
        scale = (self._bounds["gradient_clip"] / (length + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(column(scale, gradient))

    def _move(self, parameters: Sequence[Tensor], rate: Tensor) -> None:
        torch._foreach_zero_(self._moved)
        pairs = list(zip(parameters, self._moved, strict=True))
        if self._decays and not self._decoupled:
            for value in parameters:
                _add(value, value, self._decay)
        for value, move in pairs:
            move.grad, value.grad = value.grad, None
        self._step()
        for value, move in pairs:
            if move.grad is None:  # it has had no part in the loss
                continue
            if self._decays and self._decoupled:
                value.mul_(1 - column(rate * self._decay, value))
            value.addcmul_(move, column(rate, value))

    def keep(self, members: list[int], parameters: Sequence[Tensor]) -> None:
        """Go on with these members alone, whose parameters are now those given."""
        self._decay, self._rates = self._decay[members], self._rates[members]
        self._bounds = {name: bound[members] for name, bound in self._bounds.items()}
        moves = [] if self._alike else [m.detach()[members].requires_grad_() for m in self._moved]
        kept = moves or list(parameters)
        for old, new in zip(self._moved, kept, strict=True):
            self.optimizer.state[new] = {
                k: v[members] if v is not None and v.shape == old.shape else v
                for k, v in self.optimizer.state.pop(old, {}).items()
            }
        self._moved = self.optimizer.param_groups[0]["params"] = kept
        self._step = Step(self.optimizer)


def _add(parameter: Tensor, gradient: Tensor, factor: Tensor) -> None:
    """Add each member's share of a further gradient, if the parameter has one."""
    if parameter.grad is not None:
        parameter.grad.addcmul_(gradient, column(factor, gradient))


def column(values: Tensor, like: Tensor) -> Tensor:
    """Values [members] in a shape that goes with [members, ...]."""
    return values.view(-1, *[1] * (like.dim() - 1))
