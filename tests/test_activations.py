"""Every activation against PyTorch, its derivative, its range, and what its gain is for."""

from math import e, exp, inf, sqrt

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from perceptrail.activations import ACTIVATIONS
from perceptrail.model import MLP

KINKS = {"relu", "leaky_relu", "selu"}  # not differentiable at 0
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


@pytest.fixture
def x():
    """Small values, large ones, and 0."""
    return np.concatenate([np.linspace(-9, 9, 18001), [-1000.0, -40.0, 0.0, 40.0, 1000.0]])


def in_torch(name, x):
    """f(x) and its derivative, as PyTorch has them."""
    activation = ACTIVATIONS[name]
    leaf = torch.from_numpy(x).requires_grad_()
    y = getattr(nn, activation.module)(**activation.options)(leaf)
    y.sum().backward()
    return y.detach().numpy(), leaf.grad.numpy()


@every_activation
def test_f_is_what_its_torch_module_computes(name, x):
    assert_allclose(ACTIVATIONS[name].f(x), in_torch(name, x)[0], rtol=1e-9, atol=1e-8)


@every_activation
def test_df_is_what_autograd_finds(name, x):
    assert_allclose(ACTIVATIONS[name].df(x), in_torch(name, x)[1], rtol=1e-9, atol=1e-8)


@every_activation
def test_df_is_the_slope_of_f(name, x):
    h = 1e-5
    x = x[np.abs(x) > h] if name in KINKS else x
    f = ACTIVATIONS[name].f
    assert_allclose((f(x + h) - f(x - h)) / (2 * h), ACTIVATIONS[name].df(x), atol=1e-5)


@every_activation
def test_shapes_are_kept_and_inputs_left_alone(name):
    x = np.linspace(-2, 2, 24).reshape(2, 3, 4)
    before = x.copy()
    assert ACTIVATIONS[name].f(x).shape == ACTIVATIONS[name].df(x).shape == x.shape
    assert (x == before).all()


@every_activation
def test_the_range_holds_every_value_and_no_more(name, x):
    low, high = ACTIVATIONS[name].range
    values = ACTIVATIONS[name].f(x)
    assert low <= values.min()
    assert values.max() <= high
    # Without a bound, the largest inputs go far; with one, some input comes close.
    assert values.min() < (-9 if low == -inf else low + 1e-4)
    assert values.max() > (900 if high == inf else high - 1e-4)


# ELU: E[f²] = 1/2 from the positive half, and E[(exp(z) - 1)²; z < 0] by completing the square.
ELU_SQUARE = 1 / 2 + e**2 * norm.cdf(-2) - 2 * exp(1 / 2) * norm.cdf(-1) + 1 / 2


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        ("identity", 1),
        ("relu", sqrt(2)),  # He et al. 2015
        ("leaky_relu", sqrt(2 / (1 + 0.01**2))),  # He et al. 2015, equation 15
        ("selu", 1),  # Klambauer et al. 2017: variance 1 is a fixed point
        ("elu", ELU_SQUARE**-0.5),
    ],
)
def test_gains_known_in_closed_form(name, gain):
    assert ACTIVATIONS[name].gain == pytest.approx(gain, rel=1e-4)


@every_activation
def test_the_gain_makes_up_for_what_f_does_to_a_normal_number(name):
    def square(z):
        return float(ACTIVATIONS[name].f(np.array(z)) ** 2 * norm.pdf(z))

    mean_square = quad(square, -12, 0)[0] + quad(square, 0, 12)[0]
    assert ACTIVATIONS[name].gain == pytest.approx(mean_square**-0.5, rel=1e-4)


# How far from 1 the size may stray: ReLU's walks at random; where E[f(sz)²]/s² grows with s, a
# deviation grows from layer to layer.
STRAY = {"relu": 1.5, "leaky_relu": 1.5, "gelu": 2.0, "mish": 2.0, "silu": 4.0}


@every_activation
def test_the_signal_keeps_its_size_through_twenty_layers(name):
    width, sizes = 512, []
    for seed in range(3):
        torch.manual_seed(seed)
        network = MLP(width, 1, hidden=[width] * 20, activation=name).eval()
        x = torch.randn(64, width)
        linear = [i for i, layer in enumerate(network.layers) if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            last_hidden = network.layers[: linear[19] + 1](x)
        sizes.append(float(last_hidden.square().mean().sqrt()))
    stray = STRAY.get(name, 1.2)
    assert 1 / stray < np.exp(np.mean(np.log(sizes))) < stray
