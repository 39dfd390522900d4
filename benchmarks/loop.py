"""The least there is to do: a plain PyTorch loop on tensors that stay in memory."""

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from perceptrail.linear import is_large, product

PEAK_SIDE = 2048


class Loop:
    """Trains a ReLU network by Adam, epoch by epoch, on x [n, d] and labels y [n]."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        hidden: tuple[int, ...],
        dropout: float = 0.0,
        classes: int,
        batch: int,
        rate: float,
    ) -> None:
        self._x, self._y, self._batch = x, y, batch
        self._network = network(x.shape[1], hidden, classes, dropout=dropout)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=rate, fused=True)
        self._loss = nn.CrossEntropyLoss()

    def epoch(self) -> float:
        """One pass in a new order; how many seconds it took."""
        x, y, optimizer, loss = self._x, self._y, self._optimizer, self._loss
        self._network.train()
        started = time.perf_counter()
        for i in torch.randperm(len(x)).split(self._batch):
            optimizer.zero_grad()
            loss(self._network(x[i]), y[i]).backward()
            optimizer.step()
        return time.perf_counter() - started

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """The share of examples that are recognised."""
        self._network.eval()
        return float((self._network(x).argmax(1) == y).double().mean())


def network(
    inputs: int, hidden: Sequence[int], classes: int, *, dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with ReLU and dropout between them, which start as perceptrail's do.

    PyTorch's own start lags by half a point of accuracy over the first few hundred steps.
    """
    layers: list[nn.Module] = []
    for fan_in, width in pairwise([inputs, *hidden, classes]):
        linear = nn.Linear(fan_in, width)
        nn.init.normal_(linear.weight, std=((2 if layers else 1) / fan_in) ** 0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers[: -2 if dropout else -1])


def matmul_peak() -> float:
    """Floating-point operations a second of a large float32 matrix product; the best of five, by
    each of the libraries that PyTorch carries.
    """
    a = torch.randn(PEAK_SIDE, PEAK_SIDE)
    times = []
    for multiply in (torch.mm, product) if is_large(a) else (torch.mm,):
        for _ in range(5):
            started = time.perf_counter()
            multiply(a, a)
            times.append(time.perf_counter() - started)
    return 2 * PEAK_SIDE**3 / min(times)
