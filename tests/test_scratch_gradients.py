"""Gradients of the network in NumPy against central differences and against autograd."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F

from perceptrail.activations import ACTIVATIONS
from perceptrail.scratch.losses import LOSSES
from perceptrail.scratch.network import Network, numerical_gradient

OUTPUTS = {"cross_entropy": 4, "binary_cross_entropy": 1, "squared_error": 1}
TORCH = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.double()),
    "squared_error": lambda z, y: F.mse_loss(z[:, 0], y.double()),
}
EXAMPLES, L2 = 7, 0.05
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture
def problem(activation, loss):
    """A network with biases that are not 0, examples, labels and dropout masks."""
    rng = np.random.default_rng(0)
    widths = [3, 6, 5, OUTPUTS[loss]]
    network = Network(widths, activation=activation, loss=loss, dropout=0.3, l2=L2, seed=1)
    for _, b in network.layers:
        b[...] = rng.normal(size=b.shape)
    y = rng.integers(max(2, OUTPUTS[loss]), size=EXAMPLES)
    return network, rng.normal(size=(EXAMPLES, 3)), y, network.draw_masks(EXAMPLES, rng)


def autograd(problem, activation, loss):
    """The loss and its gradient as PyTorch has them, of the same parameters in its own layers."""
    network, x, y, masks = problem
    f = getattr(nn, ACTIVATIONS[activation].module)(**ACTIVATIONS[activation].options)
    parameters = [
        (torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True))
        for w, b in network.layers
    ]
    a = torch.tensor(x)
    for (w, b), mask in zip(parameters[:-1], masks, strict=True):
        a = f(F.linear(a, w.T, b)) * torch.tensor(mask)
    z = F.linear(a, parameters[-1][0].T, parameters[-1][1])
    penalty = L2 / 2 * sum(w.square().sum() for w, _ in parameters)
    value = TORCH[loss](z, torch.tensor(y)) + penalty
    value.backward()
    return value.item(), [(w.grad.numpy(), b.grad.numpy()) for w, b in parameters]


@every_loss
@every_activation
def test_the_gradient_is_what_central_differences_find(problem):
    network, x, y, masks = problem

    def loss():
        return network.loss(network.forward(x, masks=masks), y)

    loss()
    gradient = network.backward(y)
    assert min(np.abs(z).min() for z in network._z[:-1]) > 1e-3, "too near a kink for differences"
    numerical = network.split(numerical_gradient(loss, network.theta))
    for of_layer, found in zip(network.split(gradient), numerical, strict=True):
        for exact, approximate in zip(of_layer, found, strict=True):
            assert np.linalg.norm(exact - approximate) < 1e-7 * np.linalg.norm(exact)


@every_loss
@every_activation
def test_loss_and_gradient_are_what_autograd_finds(problem, activation, loss):
    network, x, y, masks = problem
    value = network.loss(network.forward(x, masks=masks), y)
    expected, gradients = autograd(problem, activation, loss)
    assert value == pytest.approx(expected, rel=1e-12)
    for of_layer, found in zip(network.split(network.backward(y)), gradients, strict=True):
        for ours, theirs in zip(of_layer, found, strict=True):
            assert_allclose(ours, theirs, rtol=1e-9, atol=1e-14)


def test_central_differences_are_those_of_a_polynomial_and_leave_the_point_as_it_was():
    theta = np.array([1.0, -2.0, 0.5])
    before = theta.copy()
    numerical = numerical_gradient(lambda: float(theta[0] ** 2 * theta[1] + theta[2]), theta)
    assert_allclose(numerical, [2 * 1.0 * -2.0, 1.0, 1.0], rtol=1e-9)
    assert (theta == before).all()


@pytest.mark.parametrize("activation", ["relu"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_outputs_far_from_zero_neither_overflow_nor_lose_the_gradient(problem, loss):
    network, x, y, _ = problem
    network.layers[-1][0][...] *= 1e5
    network.l2 = 0
    z = network.forward(x)
    value = network.loss(z, y)
    expected = TORCH[loss](torch.tensor(z), torch.tensor(y))
    assert np.abs(z).max() > 1e4
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert np.isfinite(network.backward(y)).all()
    assert np.abs(network.predict(x)).max() <= 1


@every_activation
@every_loss
def test_float32_stays_float32_and_near_float64(activation, loss):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)), rng.integers(max(2, OUTPUTS[loss]), size=64)
    gradients = []
    for dtype in (np.float64, np.float32):
        network = Network([3, 16, 8, OUTPUTS[loss]], activation=activation, loss=loss, dtype=dtype)
        z = network.forward(x.astype(dtype))
        gradients.append(network.backward(y))
        assert z.dtype == gradients[-1].dtype == network.predict(x).dtype == dtype
    exact, rough = gradients
    assert 0 < np.linalg.norm(exact - rough) < 1e-5 * np.linalg.norm(exact)
