"""The loss functions: each with its gradient, and the answers that go with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptrail.activations import ACTIVATIONS

Array = NDArray[Any]  # float64 where gradients are checked, float32 where speed counts
Labels = NDArray[Any]  # integers; of squared_error, numbers


@dataclass(frozen=True)
class Loss:
    """A loss L of outputs z [n, k] before labels y [n], the mean over the n examples, in nats.

    `delta` is ∂L/∂z [n, k]; `probabilities` [n, k] and `labels` [n] are what the outputs say. Of
    the squared error, in the square of y's unit, both are the outputs themselves.
    """

    value: Callable[[Array, Labels], float]
    delta: Callable[[Array, Labels], Array]
    probabilities: Callable[[Array], Array]
    labels: Callable[[Array], Labels]


def _softmax(z: Array) -> Array:
    e: Array = np.exp(z - z.max(axis=1, keepdims=True))  # the largest is 1: no overflow
    e /= e.sum(axis=1, keepdims=True)
    return e


def _cross_entropy(z: Array, y: Labels) -> float:
    """L = mean(log Σⱼ exp zⱼ - z_y): minus the logarithm of the true class's probability."""
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def _cross_entropy_delta(z: Array, y: Labels) -> Array:
    """∂L/∂z = (p - t)/n, where t is 1 for the true class and 0 for the others."""
    delta = _softmax(z)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    return delta


_sigmoid, _softplus = ACTIVATIONS["sigmoid"].f, ACTIVATIONS["softplus"].f


def _binary_cross_entropy(z: Array, y: Labels) -> float:
    """L = mean(log(1 + exp z) - y z), which is -log σ(z) for y = 1 and -log(1 - σ(z)) for 0."""
    return float(np.mean(_softplus(z[:, 0]) - y * z[:, 0]))


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(
        _cross_entropy, _cross_entropy_delta, _softmax, lambda z: z.argmax(axis=1)
    ),
    # Of one output: z [n, 1], the probability being that of label 1.
    "binary_cross_entropy": Loss(
        _binary_cross_entropy,
        lambda z, y: (_sigmoid(z) - y[:, None].astype(z.dtype)) / len(y),
        _sigmoid,
        lambda z: (z[:, 0] > 0).astype(np.int64),
    ),
    # Of one output, a number: regression.
    "squared_error": Loss(
        lambda z, y: float(np.mean((z[:, 0] - y) ** 2)),
        lambda z, y: 2 * (z - y[:, None].astype(z.dtype)) / len(y),
        lambda z: z,
        lambda z: z[:, 0],
    ),
}
