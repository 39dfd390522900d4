"""A multi-layer perceptron whose gradient is written out: forward, backward, fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

from perceptrail.activations import ACTIVATIONS, Activation
from perceptrail.errors import UserError, did_you_mean
from perceptrail.scratch.losses import LOSSES, Array, Labels
from perceptrail.scratch.optimizers import Optimizer


class Network:
    """Layers z = aW + b, with a = m ⊙ f(z) between them; a₀ = x goes in, the last z comes out.

    `widths` are those of the inputs, of every hidden layer and of the outputs. f is `activation`,
    by its name or itself; m a mask of inverted dropout: 0 with probability `dropout`, else
    1/(1 - dropout), so that a's mean stays. To the loss is added l2/2 Σ W², of the weights and not
    of the biases.

    All parameters lie in one vector `theta`; `layers` holds W [fan_in, fan_out] and b [fan_out] of
    each layer as views into it. W starts as normal numbers of variance gain²/fan_in (He et al.
    2015, arXiv:1502.01852, section 2.2), the gain being that of the activation which a layer's
    inputs have gone through; b starts at 0. Raises `UserError` for an unknown activation or loss.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: str | Activation = "relu",
        loss: str = "cross_entropy",
        dropout: float = 0.0,
        l2: float = 0.0,
        seed: int = 0,
        dtype: DTypeLike = np.float64,
    ) -> None:
        self.widths = tuple(widths)
        if isinstance(activation, str):
            activation = ACTIVATIONS[_known("activation", activation, ACTIVATIONS)]
        self._f = activation
        self._loss = LOSSES[_known("loss", loss, LOSSES)]
        self.dropout, self.l2 = dropout, l2
        self.theta: Array = np.zeros(sum((m + 1) * n for m, n in pairwise(widths)), dtype)
        self.layers = self.split(self.theta)
        rng = np.random.default_rng(seed)
        for k, (w, _) in enumerate(self.layers):
            gain = self._f.gain if k > 0 else 1.0
            w[...] = gain / len(w) ** 0.5 * rng.standard_normal(w.shape)

    def split(self, vector: Array) -> list[tuple[Array, Array]]:
        """Views into a vector of theta's length: for each layer its part W and its part b."""
        shapes = list(pairwise(self.widths))
        parts = np.split(vector, np.cumsum([(m + 1) * n for m, n in shapes])[:-1])
        return [
            (part[: m * n].reshape(m, n), part[m * n :])
            for part, (m, n) in zip(parts, shapes, strict=True)
        ]

    def forward(self, x: Array, *, masks: Sequence[Array | float] | None = None) -> Array:
        """Outputs z [n, k] of inputs x [n, d], with the dropout masks [n, width] of hidden layers.

        No masks mean no dropout. What `backward` needs is kept until the next call.
        """
        self._masks = masks or [1.0] * (len(self.layers) - 1)
        self._a, self._z = [x], []
        for k, (w, b) in enumerate(self.layers):
            self._z.append(self._a[k] @ w + b)
            if k < len(self._masks):
                self._a.append(self._masks[k] * self._f.f(self._z[k]))
        return self._z[-1]

    def backward(self, y: Labels) -> Array:
        """The gradient ∂L/∂θ of the loss for the last `forward`'s inputs and labels y [n].

        The chain rule, from the last layer to the first. With δ = ∂L/∂z of a layer z = aW + b,

            ∂L/∂W = aᵀδ + l2 W    ∂L/∂b = Σₙ δ    ∂L/∂a = δWᵀ

        and as a = m ⊙ f(z) of the layer before, the δ of that one is ∂L/∂a ⊙ m ⊙ f'(z).
        """
        gradient = np.empty_like(self.theta)
        delta = self._loss.delta(self._z[-1], y)
        for k, (dw, db) in reversed(list(enumerate(self.split(gradient)))):
            w, _ = self.layers[k]
            dw[...] = self._a[k].T @ delta + self.l2 * w
            db[...] = delta.sum(axis=0)
            if k > 0:
                delta = delta @ w.T
                delta *= self._masks[k - 1] * self._f.df(self._z[k - 1])  # in place: float32 stays
        return gradient

    def loss(self, z: Array, y: Labels) -> float:
        """The loss L of outputs z [n, k] before labels y [n], penalty included."""
        penalty = sum(float(np.vdot(w, w)) for w, _ in self.layers)
        return self._loss.value(z, y) + self.l2 / 2 * penalty

    def draw_masks(self, n: int, rng: np.random.Generator) -> list[Array] | None:
        """Masks of dropout for n examples; None where nothing is dropped."""
        if self.dropout == 0:
            return None
        keep, dtype = 1 - self.dropout, self.theta.dtype
        return [
            np.divide(rng.random((n, width), np.float32) < keep, keep, dtype=dtype)
            for width in self.widths[1:-1]
        ]

    def fit(
        self,
        x: Array,
        y: Labels,
        *,
        optimizer: Optimizer,
        epochs: int,
        batch_size: int = 128,
        validation: tuple[Array, Labels] | None = None,
        patience: int | None = None,
        seed: int = 0,
    ) -> list[dict[str, float]]:
        """Learn labels y [n] of inputs x [n, d] in mini-batches; return the metrics of each epoch.

        With `patience`, it stops after so many epochs in a row without a lower validation loss, and
        takes back the parameters of the best. `seed` draws the order of examples and the masks.
        Raises `UserError` for patience without validation examples.
        """
        if patience is not None and validation is None:
            raise UserError(f"patience={patience}: early stopping needs validation=(x, y)")
        rng = np.random.default_rng(seed)
        x = x.astype(self.theta.dtype, copy=False)
        history: list[dict[str, float]] = []
        best, best_loss, best_epoch = self.theta.copy(), np.inf, 0
        for epoch in range(1, epochs + 1):
            total = 0.0
            for batch in batches(len(x), batch_size, rng):
                z = self.forward(x[batch], masks=self.draw_masks(len(batch), rng))
                total += len(batch) * self.loss(z, y[batch])
                optimizer.step(self.theta, self.backward(y[batch]))
            history.append({"epoch": epoch, "train/loss": total / len(x)})
            if validation is None:
                continue
            loss, accuracy = self.evaluate(*validation)
            history[-1] |= {"val/loss": loss, "val/acc": accuracy}
            if loss < best_loss:
                best, best_loss, best_epoch = self.theta.copy(), loss, epoch
            elif patience is not None and epoch - best_epoch >= patience:
                break
        if patience is not None:
            self.theta[...] = best
        return history

    def evaluate(self, x: Array, y: Labels) -> tuple[float, float]:
        """Loss without the penalty, and accuracy in [0, 1]."""
        z = self.forward(x.astype(self.theta.dtype, copy=False))
        return self._loss.value(z, y), float(np.mean(self._loss.labels(z) == y))

    def predict(self, x: Array) -> Array:
        """Probabilities [n, k] of the classes, or [n, 1] of label 1 where there is one output."""
        return self._loss.probabilities(self.forward(x.astype(self.theta.dtype, copy=False)))


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Labels]:
    """Indices of n examples in random order, `size` at a time; the last batch may be smaller."""
    order = rng.permutation(n)
    for start in range(0, n, size):
        yield order[start : start + size]


def numerical_gradient(f: Callable[[], float], theta: Array, *, step: float = 1e-5) -> Array:
    """The gradient of f, which reads theta, by central differences (f(θᵢ + h) - f(θᵢ - h)) / 2h.

    It differs from the true one by about h² from the curve's bend and 1e-16/h from rounding, in
    float64; it needs two calls of f for each parameter, where backpropagation needs one pass for
    all.
    """
    gradient = np.empty_like(theta)
    for i, here in enumerate(theta.copy()):
        theta[i] = here + step
        above = f()
        theta[i] = here - step
        gradient[i] = (above - f()) / (2 * step)
        theta[i] = here
    return gradient


def _known(key: str, name: str, allowed: Iterable[str]) -> str:
    if name not in allowed:
        hint = did_you_mean(name, allowed)
        raise UserError(f"{key}={name}: must be one of {', '.join(allowed)}{hint}")
    return name
