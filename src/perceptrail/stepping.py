"""The optimizer's step, without what PyTorch finds out anew each time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

aten = torch.ops.aten


class State(NamedTuple):
    """What Adam remembers of parameters: of each, and their `steps` as one tensor, `all_steps`."""

    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    all_steps: Tensor


class Step:
    """Makes an optimizer's steps, bit for bit: those of fused Adam and AdamW by the kernel alone.

    To sort a handful of parameters by what they need takes PyTorch as long as the kernel takes for
    a quarter of a million weights. The first step is the optimizer's own, and makes its state.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self.groups = optimizer, optimizer.param_groups
        self.states: list[State] = []  # of each group, once there is the kernel alone

    def forget(self) -> None:
        """Drop the gradients."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    def __call__(self) -> None:
        """Make a step by the gradients that the parameters hold."""
        if not self.states:
            self._optimizer.step()
            if _is_one_kernel(self._optimizer):
                self.states = [self._state(group["params"]) for group in self.groups]
            return
        for group, state in zip(self.groups, self.states, strict=True):
            gradients = [parameter.grad for parameter in group["params"]]
            adam(group["params"], gradients, state, group["lr"], settings(group))

    def _state(self, parameters: list[Tensor]) -> State:
        own = [self._optimizer.state[parameter] for parameter in parameters]
        all_steps = torch.stack([state["step"] for state in own])
        steps = list(all_steps)
        for state, step in zip(own, steps, strict=True):
            state["step"] = step
        means, squares = ([state[k] for state in own] for k in ("exp_avg", "exp_avg_sq"))
        return State(means, squares, steps, all_steps)


class Settings(NamedTuple):
    """What Adam goes by, but for its rate."""

    beta1: float
    beta2: float
    weight_decay: float
    eps: float
    decoupled: bool
    maximize: bool


def settings(group: dict[str, Any]) -> Settings:
    """Those of an optimizer's group."""
    decoupled, (beta1, beta2) = group["decoupled_weight_decay"], group["betas"]
    return Settings(beta1, beta2, group["weight_decay"], group["eps"], decoupled, group["maximize"])


def adam(
    parameters: list[Tensor], gradients: list[Tensor], state: State, lr: float, by: Settings
) -> None:
    """Make a step by one kernel, for which TorchScript, which compiles this, knows no variable."""
    means, squares, steps, all_steps = state
    all_steps.add_(1)
    if by.decoupled:
        aten._fused_adamw_(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=lr,
            beta1=by.beta1,
            beta2=by.beta2,
            weight_decay=by.weight_decay,
            eps=by.eps,
            amsgrad=False,
            maximize=by.maximize,
        )
    else:
        aten._fused_adam_(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=lr,
            beta1=by.beta1,
            beta2=by.beta2,
            weight_decay=by.weight_decay,
            eps=by.eps,
            amsgrad=False,
            maximize=by.maximize,
        )


def _is_one_kernel(optimizer: Optimizer) -> bool:
    return type(optimizer) in (Adam, AdamW) and all(
        group["fused"]
        and not group["amsgrad"]
        and not isinstance(group["lr"], Tensor)
        and all(parameter.grad is not None for parameter in group["params"])
        for group in optimizer.param_groups
    )
