"""The activation functions: each with its derivative, its range and its PyTorch module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Activation:
    """One activation function f and what is known about it.

    `f` and `df` map an array to an array of the same shape; `df` is the derivative with respect to
    the input. `range` bounds f's values. `module` names the class in `torch.nn` that computes the
    same f, `options` the arguments that class needs for it.
    """

    f: Function
    df: Function
    range: tuple[float, float]
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def gain(self) -> float:
        """The factor g for which weights of variance g²/fan_in keep the size of the signal.

        g = E[f(z)²]^(-1/2) for z ~ N(0, 1), which is √2 for ReLU as in He et al. 2015 (section 2.2,
        arXiv:1502.01852); computed by Gauss-Hermite quadrature.
        """
        z, weight = np.polynomial.hermite_e.hermegauss(100)
        return float((weight @ self.f(z) ** 2 / weight.sum()) ** -0.5)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _elu_slope(x: Array) -> Array:
    return np.where(x > 0, 1.0, np.exp(np.minimum(x, 0)))


def _tanh_slope(x: Array) -> Array:
    return 1 - np.tanh(x) ** 2


_GELU_SCALE = float(np.sqrt(2 / np.pi))


def _gelu_inner(x: Array) -> Array:
    return _GELU_SCALE * (x + 0.044715 * x**3)


def _gelu_slope(x: Array) -> Array:
    u = _gelu_inner(x)
    du = _GELU_SCALE * (1 + 3 * 0.044715 * x**2)
    slope: Array = 0.5 * (1 + np.tanh(u)) + 0.5 * x * _tanh_slope(u) * du
    return slope


def _silu_slope(x: Array) -> Array:
    s = _sigmoid(x)
    return s * (1 + x * (1 - s))


def _mish_slope(x: Array) -> Array:
    t: Array = np.tanh(_softplus(x))
    return t + x * (1 - t**2) * _sigmoid(x)


# Klambauer et al. 2017, arXiv:1706.02515, equation 2 and the constants after it.
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772

_INF = float("inf")

ACTIVATIONS: Mapping[str, Activation] = {
    "identity": Activation(lambda x: x, np.ones_like, (-_INF, _INF), "Identity"),
    "sigmoid": Activation(
        _sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x)), (0.0, 1.0), "Sigmoid"
    ),
    "tanh": Activation(np.tanh, _tanh_slope, (-1.0, 1.0), "Tanh"),
    "relu": Activation(
        lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float), (0.0, _INF), "ReLU"
    ),
    "leaky_relu": Activation(
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x > 0, 1.0, 0.01),
        (-_INF, _INF),
        "LeakyReLU",
    ),
    "elu": Activation(_elu, _elu_slope, (-1.0, _INF), "ELU"),
    "selu": Activation(
        lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * _elu(x)),
        lambda x: _SELU_SCALE * np.where(x > 0, 1.0, _SELU_ALPHA * _elu_slope(x)),
        (-_SELU_SCALE * _SELU_ALPHA, _INF),
        "SELU",
    ),
    "softplus": Activation(_softplus, _sigmoid, (0.0, _INF), "Softplus"),
    # The tanh form of Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2: NumPy has no erf.
    "gelu": Activation(
        lambda x: 0.5 * x * (1 + np.tanh(_gelu_inner(x))),
        _gelu_slope,
        (-0.17005, _INF),
        "GELU",
        {"approximate": "tanh"},
    ),
    "silu": Activation(lambda x: x * _sigmoid(x), _silu_slope, (-0.27847, _INF), "SiLU"),
    "mish": Activation(lambda x: x * np.tanh(_softplus(x)), _mish_slope, (-0.30885, _INF), "Mish"),
}
