"""The optimizer's step, without what PyTorch finds out anew each time."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


class _State(NamedTuple):
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
        self._optimizer, self._groups = optimizer, optimizer.param_groups
        self._states: list[_State] = []  # of each group, once there is the kernel alone

    def forget(self) -> None:
        """Drop the gradients."""
        for group in self._groups:
            for parameter in group["params"]:
                parameter.grad = None

    def __call__(self) -> None:
        """Make a step by the gradients that the parameters hold."""
        if not self._states:
            self._optimizer.step()
            if _is_one_kernel(self._optimizer):
                self._states = [self._state(group["params"]) for group in self._groups]
            return
        for group, (means, squares, steps, all_steps) in zip(
            self._groups, self._states, strict=True
        ):
            kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            all_steps.add_(1)
            kernel(
                group["params"],
                [parameter.grad for parameter in group["params"]],
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )

    def _state(self, parameters: list[Tensor]) -> _State:
        own = [self._optimizer.state[parameter] for parameter in parameters]
        all_steps = torch.stack([state["step"] for state in own])
        steps = list(all_steps)
        for state, step in zip(own, steps, strict=True):
            state["step"] = step
        means, squares = ([state[k] for state in own] for k in ("exp_avg", "exp_avg_sq"))
        return _State(means, squares, steps, all_steps)


def _is_one_kernel(optimizer: Optimizer) -> bool:
    return type(optimizer) in (Adam, AdamW) and all(
        group["fused"]
        and not group["amsgrad"]
        and not isinstance(group["lr"], Tensor)
        and all(parameter.grad is not None for parameter in group["params"])
        for group in optimizer.param_groups
    )
