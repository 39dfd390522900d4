"""How parameters θ follow their gradient g: plain descent, momentum and Adam."""

from typing import Protocol

import numpy as np

from perceptrail.scratch.losses import Array


class Optimizer(Protocol):
    """Changes θ in place, by one step against the gradient, which has θ's shape.

    It may remember earlier steps: each training wants one of its own.
    """

    def step(self, theta: Array, gradient: Array) -> None:
        """Make the step."""


class SGD:
    """Stochastic gradient descent: v ← μv + g, θ ← θ - ηv (Polyak 1964); plain where μ is 0."""

    def __init__(self, rate: float, *, momentum: float = 0.0) -> None:
        self.rate, self.momentum = rate, momentum
        self._velocity: Array | float = 0.0

    def step(self, theta: Array, gradient: Array) -> None:
        """Make the step."""
        self._velocity = self.momentum * self._velocity + gradient
        theta -= self.rate * self._velocity


class Adam:
    """Steps of even size for every parameter (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    m ← β₁m + (1 - β₁)g and v ← β₂v + (1 - β₂)g² are running means of the gradient and of its
    square. Both begin at 0, and 1 - βᵗ, their share of weight by step t, makes up for it:
    θ ← θ - η m̂ / (√v̂ + ε).
    """

    def __init__(
        self, rate: float, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        self.rate, self.betas, self.epsilon = rate, betas, epsilon
        self._mean: Array | float = 0.0
        self._square: Array | float = 0.0
        self._steps = 0

    def step(self, theta: Array, gradient: Array) -> None:
        """Make the step."""
        self._steps += 1
        beta1, beta2 = self.betas
        self._mean = beta1 * self._mean + (1 - beta1) * gradient
        self._square = beta2 * self._square + (1 - beta2) * gradient**2
        mean = self._mean / (1 - beta1**self._steps)
        square = self._square / (1 - beta2**self._steps)
        theta -= self.rate * mean / (np.sqrt(square) + self.epsilon)
