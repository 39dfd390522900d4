"""Compiled steps against those one by one, to the bit."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import Adam, AdamW, Optimizer

from perceptrail import compiled
from perceptrail.compiled import Steps
from perceptrail.gradient import Gradient
from perceptrail.losses import loss_and_slope
from perceptrail.model import MLP
from perceptrail.stepping import Step

OPTIMIZERS: dict[str, Any] = {
    "adam": partial(Adam, lr=0.01, fused=True, weight_decay=0.1),
    "adamw": partial(AdamW, lr=0.01, fused=True, betas=(0.8, 0.9), eps=1e-3),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(
    network: MLP,
    make: Callable[..., Optimizer],
    *,
    dtype: torch.dtype = torch.float32,
    fresh: bool = False,
) -> None:
    """The same batches, of several sizes, through both; rates of learning and dropout move."""
    twin = copy.deepcopy(network)
    optimizer, reference = make(network.parameters()), make(twin.parameters())
    mine, theirs = Step(optimizer), Step(reference)
    gradient = Gradient(network, loss_and_slope, dtype=dtype)
    expected = Gradient(twin, loss_and_slope, dtype=dtype)
    assert Steps.suits(network, mine)
    steps = Steps(network, mine, fresh=fresh, dtype=dtype)
    assert not steps.ready
    torch.manual_seed(3)
    inputs = network.architecture["inputs"]
    classes = max(2, network.architecture["outputs"])
    sizes = (24, 24, 24, 7, 24, 2)
    batches = [(torch.rand(n, inputs), torch.randint(classes, (n,))) for n in sizes]
    settings = [(0.01 / k, 0.1 * (k % 3)) for k in range(1, len(batches) + 1)]

    def set_both(lr: float, rate: float) -> None:
        for each, net in ((optimizer, network), (reference, twin)):
            each.param_groups[0]["lr"] = lr
            net.set_dropout(rate)

    torch.manual_seed(5)
    losses = []
    for (x, y), own in zip(batches, settings, strict=True):
        set_both(*own)
        theirs.forget()
        losses.append(expected(x, y))
        theirs()
    torch.manual_seed(5)
    set_both(*settings[0])
    mine.forget()
    ours = [gradient(*batches[0])]
    mine()
    assert steps.ready
    owns = []
    for (x, _), own in zip(batches[1:], settings[1:], strict=True):
        set_both(*own)
        owns.append(steps.own(len(x)))
    before = batches[1][0].clone()
    with torch.autocast("cpu", enabled=dtype != torch.float32):  # as Lightning has it
        ours += steps(batches[1:3], owns[:2]) + steps(batches[3:], owns[2:])
    assert [loss.item() for loss in ours] == [loss.item() for loss in losses]
    steps.leave()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert fresh != torch.equal(batches[1][0], before)
    for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), reference.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("hidden", [[], [9], [256, 130], [9, 1, 4]])
def test_every_size_and_norm(
    hidden: list[int], optimizer: str, norm: str | None, outputs: int
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "hidden": hidden,
        "norm": norm,
        "mean": 0.4,
        "std": 0.3,
        "input_dropout": 0.1,
    }
    assert_same(MLP(170, outputs, **options), OPTIMIZERS[optimizer])


@pytest.mark.parametrize("norm", [None, "batch"])
def test_bfloat16(norm: str | None) -> None:
    torch.manual_seed(0)
    network = MLP(130, 3, hidden=[128, 200], norm=norm, mean=[0.4] * 130, std=[0.3] * 130)
    assert_same(network, OPTIMIZERS["adamw"], dtype=torch.bfloat16)


def test_inputs_may_be_overwritten_if_they_are_of_no_more_use() -> None:
    torch.manual_seed(0)
    assert_same(MLP(8, 3, hidden=[7, 5], mean=0.5, std=0.3), OPTIMIZERS["adamw"], fresh=True)


def test_by_python_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14))
    compiled.compiled.cache_clear()
    torch.manual_seed(0)
    assert_same(MLP(8, 3, hidden=[7, 5], norm="batch"), OPTIMIZERS["adamw"])
    compiled.compiled.cache_clear()


@pytest.mark.parametrize(
    "network",
    [
        MLP(4, 3, hidden=[5], activation="tanh"),
        MLP(4, 3, hidden=[5], norm="layer"),
        MLP(4, 3, hidden=[5], noise=0.1),
        MLP(4, 3, hidden=[5]).double(),
    ],
)
def test_what_it_does_not_know_it_does_not_take(network: MLP) -> None:
    assert not Steps.suits(network, Step(OPTIMIZERS["adam"](network.parameters())))
