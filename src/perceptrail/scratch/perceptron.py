"""The perceptron: one artificial neuron, and the rule by which it learns.

Rosenblatt 1958, "The perceptron: a probabilistic model for information storage and organization in
the brain".
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]


class Epoch(NamedTuple):
    """One pass over the examples: how many were wrong, and the line w·x + b = 0 it ended with."""

    mistakes: int
    weights: Floats
    bias: float


class Perceptron:
    """A neuron that fires, ŷ = 1, where w·x + b > 0, and else stays silent, ŷ = 0.

    It starts with w = 0 [inputs] and b = 0. `rate` scales w and b alike and so changes no answer.
    """

    def __init__(self, inputs: int, *, rate: float = 1.0) -> None:
        self.weights, self.bias = np.zeros(inputs), 0.0
        self.rate = rate

    def predict(self, x: Floats) -> NDArray[np.int64]:
        """Whether it fires: 0 or 1 [n] for the rows of x [n, inputs]."""
        return (x @ self.weights + self.bias > 0).astype(np.int64)

    def fit(self, x: Floats, y: Labels, *, epochs: int) -> list[Epoch]:
        """Learn labels y [n] of 0 and 1, row by row, until a whole epoch has no mistake.

        A mistake, y - ŷ = ±1, turns the line towards the example: w ← w + η(y - ŷ)x and
        b ← b + η(y - ŷ). Where a line parts the classes with margin γ and `|(x, 1)|` ≤ R, it makes
        at most (R/γ)² mistakes (Novikoff 1962); where none does, it never ends.
        """
        history: list[Epoch] = []
        for _ in range(epochs):
            mistakes = 0
            for row, label in zip(x, y, strict=True):
                error = int(label - self.predict(row))
                self.weights += self.rate * error * row
                self.bias += self.rate * error
                mistakes += abs(error)
            history.append(Epoch(mistakes, self.weights.copy(), self.bias))
            if mistakes == 0:
                break
        return history
