"""The chain rule for an MLP by PyTorch's kernels alone: what autograd would leave, to the bit."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perceptrail.linear import Linear, by_inputs, by_weight, is_large, outputs
from perceptrail.model import MLP, Dropout, GaussianNoise
from perceptrail.replay import listens

aten = torch.ops.aten

ONE_EXAMPLE = "batch norm cannot be trained on a batch of one example"

# Takes the loss's gradient by a layer's outputs, and whether that by its inputs is of use; leaves
# the gradients by its parameters, and returns that by its inputs.
Back = Callable[[Tensor, bool], Tensor | None]
# Takes a layer's inputs; returns its outputs, and the way back, or none where they are the inputs.
Layer = Callable[[Tensor], tuple[Tensor, Back | None]]
# Takes logits [batch, outputs] and labels [batch]; returns the loss and its gradient by the logits.
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Gradient:
    """Computes the loss of a network in training and adds its gradient to the parameters'.

    For small networks autograd's bookkeeping takes as long as the arithmetic. Here each layer's
    derivative stands beside it, and a step is their kernels and nothing else. A kind of layer that
    has none here is differentiated by autograd, by itself. Batches of one may differ by rounding.

    With `dtype` bfloat16, large layers multiply and give such numbers; weights are rounded to them
    once a step. They stay float32 themselves, as do their gradients, small layers and the loss.
    """

    @staticmethod
    def suits(network: nn.Module) -> bool:
        """Whether nothing would be missed: a plain network in training, in float32 on the
        processor, all of whose parameters are learned, and to which nothing listens.
        """
        layers, parameters = list(network.modules()), list(network.parameters())
        return (
            type(network).forward is MLP.forward
            and all(layer.training for layer in layers)
            and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
            and all(p.requires_grad for p in parameters)
            and not listens(network)
            and not torch.is_anomaly_enabled()
        )

    def __init__(self, network: MLP, loss: Loss, *, dtype: torch.dtype = torch.float32) -> None:
        self._standardise, self._loss, self._dtype = network.standardise, loss, dtype
        layers = list(network.layers)
        learned = [any(True for _ in layer.parameters()) for layer in layers]
        self._first = learned.index(True)  # before it no gradient is of use but the inputs'
        self._layers: list[Layer] = []
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            if type(layer) is Linear:
                self._layers.append(_linear(layer, dtype, relu=type(after) is nn.ReLU))
            elif not (type(layer) is nn.ReLU and type(before) is Linear):  # else it is in there
                self._layers.append(_LAYERS.get(type(layer), _other)(layer, dtype))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of inputs [batch, inputs] and labels [batch]."""
        return self._through(x, y, self._first)[0]

    def by_inputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient by the inputs [batch, inputs]."""
        loss, gradient = self._through(x, y, -1)
        assert gradient is not None
        return loss, gradient.float() * self._standardise.scale

    @torch.no_grad()
    def _through(self, x: Tensor, y: Tensor, end: int) -> tuple[Tensor, Tensor | None]:
        """Forward, and back down to the layer `end`, whose inputs' gradient is of no use."""
        if self._dtype != torch.float32:
            with torch.autocast("cpu", enabled=False):  # it has been seen to here
                return self._walk(x, y, end)
        return self._walk(x, y, end)

    def _walk(self, x: Tensor, y: Tensor, end: int) -> tuple[Tensor, Tensor | None]:
        x = self._standardise.forward(x)
        backs: list[Back | None] = []
        for layer in self._layers:
            x, back = layer(x)
            backs.append(back)
        loss, gradient = self._loss(_as(x, torch.float32), y)
        return loss, walk_back(backs, _as(gradient, x.dtype), end=end)


class Autograd:
    """As `Gradient`, of any loss, by `backward`."""

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], *, backward: Callable[[Tensor], None]
    ) -> None:
        self._loss, self._backward = loss, backward

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        loss = self._loss(x, y)
        self._backward(loss)
        return loss.detach()

    def by_inputs(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient by the inputs."""
        x = x.detach().requires_grad_()
        loss = self(x, y)
        assert x.grad is not None
        return loss, x.grad


def walk_back(backs: Sequence[Back | None], gradient: Tensor, *, end: int) -> Tensor | None:
    """From the gradient by the last layer's outputs to that by the inputs of the layer `end`, which
    is of no use itself; with -1, to that by the inputs of all, which is.
    """
    passed: Tensor | None = gradient
    for i in range(len(backs) - 1, max(end, 0) - 1, -1):
        if (back := backs[i]) is not None:
            assert passed is not None
            passed = back(passed, i != end)
    return passed


def by_autograd(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Back]:
    """The outputs of a function that autograd is to differentiate, and the way back."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)

    def back(g: Tensor, needed: bool) -> Tensor | None:
        y.backward(g)
        return x.grad

    return y.detach(), back


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)  # to ask PyTorch takes ten times as long


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = _as(gradient, parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


def _linear(layer: nn.Module, dtype: torch.dtype, *, relu: bool) -> Layer:
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    large = is_large(weight, dtype)
    own = dtype if large else torch.float32

    def forward(x: Tensor) -> tuple[Tensor, Back]:
        given, x, w = x.dtype, _as(x, own), _as(weight, own)
        y = outputs(x, w, _as(bias, own), large, relu)

        def back(g: Tensor, needed: bool) -> Tensor | None:
            if relu:
                g = aten.threshold_backward(g, y, 0)
            _add(weight, by_weight(g, x, large))
            _add(bias, g.sum(0))
            return _as(by_inputs(g, w, large), given) if needed else None

        return y, back

    return forward


def _batch_norm(layer: nn.Module, dtype: torch.dtype) -> Layer:
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.num_batches_tracked is not None and layer.momentum is not None
    weight, bias, count = layer.weight, layer.bias, layer.num_batches_tracked
    running = (layer.running_mean, layer.running_var)
    momentum, eps = layer.momentum, layer.eps

    def forward(x: Tensor) -> tuple[Tensor, Back]:
        def back(g: Tensor, needed: bool) -> Tensor | None:
            of_x: Tensor | None
            of_x, *of_parameters = aten.native_batch_norm_backward(
                g, x, weight, *running, *saved, True, eps, (needed, True, True)
            )
            for parameter, gradient in zip((weight, bias), of_parameters, strict=True):
                _add(parameter, gradient)
            return of_x

        if len(x) == 1:
            raise ValueError(ONE_EXAMPLE)
        count.add_(1)
        y, *saved = torch.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        return y, back

    return forward


def _dropout(layer: nn.Module, dtype: torch.dtype) -> Layer:
    assert isinstance(layer, Dropout)

    def forward(x: Tensor) -> tuple[Tensor, Back | None]:
        if layer.p == 0:
            return x, None
        mask = layer.mask(x)
        return x * mask, lambda g, needed: g * mask

    return forward


def _noise(layer: nn.Module, dtype: torch.dtype) -> Layer:
    return lambda x: (layer(x), None)


def _relu(layer: nn.Module, dtype: torch.dtype) -> Layer:
    def forward(x: Tensor) -> tuple[Tensor, Back]:
        y = x.relu_()  # what comes before needs its output no more
        return y, lambda g, needed: aten.threshold_backward(g, y, 0)

    return forward


def _other(layer: nn.Module, dtype: torch.dtype) -> Layer:
    return partial(by_autograd, layer)


_LAYERS: Mapping[type[nn.Module], Callable[[nn.Module, torch.dtype], Layer]] = {
    nn.BatchNorm1d: _batch_norm,
    Dropout: _dropout,
    GaussianNoise: _noise,
    nn.ReLU: _relu,
}
