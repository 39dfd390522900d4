"""Steps by the kernel alone against PyTorch's own."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from perceptrail.stepping import Step

FUSED = {
    "adam": partial(Adam, lr=0.1, fused=True, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.1, fused=True, betas=(0.8, 0.9), eps=1e-3, maximize=True),
}
OTHERS = {
    "amsgrad": partial(Adam, lr=0.1, fused=True, amsgrad=True),
    "not fused": partial(AdamW, lr=0.1, fused=False, foreach=False),
    "a rate that is a tensor": partial(Adam, lr=torch.tensor(0.1), fused=True),
    "sgd": partial(SGD, lr=0.1, momentum=0.9, fused=True),
}


def groups(network: nn.Sequential) -> list[dict[str, Any]]:
    """The layers' parameters as two groups, the second with a rate of its own."""
    first, last = network[0], network[2]
    return [{"params": list(first.parameters())}, {"params": list(last.parameters()), "lr": 0.02}]


@pytest.mark.parametrize("made", [*FUSED, *OTHERS])
def test_the_same_weights_to_the_bit(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    theirs = copy.deepcopy(ours)
    mine, reference = ((FUSED | OTHERS)[made](groups(network)) for network in (ours, theirs))
    called: list[Optimizer] = []
    kept = mine.step
    monkeypatch.setattr(mine, "step", lambda: called.append(mine) or kept())
    step = Step(mine)
    for number in range(8):
        x = torch.randn(4, 5)
        for optimizer in (mine, reference):
            optimizer.param_groups[0]["lr"] *= 0.9  # as a schedule does
        step.forget()
        ours(x).square().sum().backward()
        step()
        reference.zero_grad()
        theirs(x).square().sum().backward()
        reference.step()
        assert len(called) == (1 if made in FUSED else number + 1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(mine.state.values(), reference.state.values(), strict=True):
        assert a["step"] == b["step"] if "step" in a else a.keys() == b.keys()


def test_a_parameter_without_gradient_leaves_the_steps_to_the_optimizer() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    step = Step(AdamW([used, unused], lr=0.1, fused=True))
    for _ in range(3):
        step.forget()
        used.sum().backward()
        step()
    assert torch.equal(unused, torch.ones(2))
    assert (used < 0.8).all()
