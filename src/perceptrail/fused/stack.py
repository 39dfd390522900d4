"""Networks of one architecture as one: each layer computes all of them at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from perceptrail.activations import ACTIVATIONS
from perceptrail.linear import Linear, is_large, product
from perceptrail.model import MLP, Dropout, GaussianNoise, draw_mask

Own = dict[str, Tensor]  # what the members have of one layer, each [members, ...]


class _Linear(torch.autograd.Function):
    """x [m, b, i], weight [m, o, i], bias [m, o] -> [m, b, o].

    Large ones member by member, with room [m, o, i] for the weight's gradient, since new memory for
    that takes as long as the products; small ones with their longer side last, which is faster.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, room: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.room = room
        if is_large(weight):
            return torch.stack([product(*own) for own in zip(x, weight, bias, strict=True)])
        if weight.shape[1] == 1:
            y = x.new_empty(*x.shape[:2], 1)
            torch.baddbmm(bias.unsqueeze(2), weight, x.mT, out=y.view(len(y), 1, -1))
            return y
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        _, fan_out, fan_in = weight.shape
        back = None
        if is_large(weight):
            if ctx.needs_input_grad[0]:
                back = torch.stack([product(g, w.T) for g, w in zip(grad, weight, strict=True)])
            for place, g, own in zip(ctx.room, grad, x, strict=True):
                place.copy_(product(g.T, own.T))
            assert weight.grad is None
            weight.grad = ctx.room  # if it were returned, it would be copied
            return back, None, grad.sum(1), None
        if ctx.needs_input_grad[0]:
            back = grad * weight if fan_out == 1 else torch.bmm(grad, weight)
        if fan_in < fan_out:
            return back, torch.bmm(x.mT, grad).mT.contiguous(), grad.sum(1), None
        return back, torch.bmm(grad.mT, x), grad.sum(1), None


def _linear(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    y: Tensor = _Linear.apply(x, own["weight"], own["bias"], own.get("room"))
    return y


def _batch_norm(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    assert isinstance(layer, nn.BatchNorm1d) and layer.momentum is not None
    if training:
        var, mean = torch.var_mean(x, 1, correction=0)
        n = x.shape[1]
        with torch.no_grad():
            own["running_mean"].lerp_(mean, layer.momentum)
            own["running_var"].lerp_(var * (n / (n - 1)), layer.momentum)
            own["num_batches_tracked"] += 1
    else:
        mean, var = own["running_mean"], own["running_var"]
    scale = own["weight"] * torch.rsqrt(var + layer.eps)
    return torch.addcmul((own["bias"] - mean * scale).unsqueeze(1), x, scale.unsqueeze(1))


def _layer_norm(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    assert isinstance(layer, nn.LayerNorm)
    normed = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return torch.addcmul(own["bias"].unsqueeze(1), normed, own["weight"].unsqueeze(1))


def _dropout(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    if not training or "p" not in own:
        return x
    return x * draw_mask(x, own["threshold"]).mul_(1 / (1 - own["p"]))


def _noise(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    return torch.addcmul(x, torch.randn_like(x), own["std"]) if training else x


def _activation(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    y: Tensor = layer(x)
    return y


def _relu(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    return x.relu_()  # what comes before needs its output no more


_FORWARD: Mapping[type[nn.Module], Callable[[nn.Module, Own, Tensor, bool], Tensor]] = {
    Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    Dropout: _dropout,
    GaussianNoise: _noise,
    **{getattr(nn, f.module): _activation for f in ACTIVATIONS.values()},
    nn.ReLU: _relu,
}


class Stack:
    """Networks whose architectures differ in rates of dropout and noise only.

    Maps standardised inputs [members, batch, inputs] to logits [members, batch, outputs].
    """

    def __init__(self, networks: Sequence[MLP], *, device: torch.device) -> None:
        self._layers: list[nn.Module] = list(networks[0].layers)
        self._own: list[Own] = []
        for i, layer in enumerate(self._layers):
            states = [network.layers[i].state_dict() for network in networks]
            own = {k: torch.stack([s[k] for s in states]).to(device) for k in layer.state_dict()}
            if isinstance(layer, GaussianNoise):
                stds = torch.tensor([network.layers[i].std for network in networks])
                own["std"] = stds.to(device)[:, None, None]
            for name, _ in layer.named_parameters():
                own[name].requires_grad_()
            if isinstance(layer, Linear) and is_large(own["weight"]):
                own["room"] = torch.empty_like(own["weight"], requires_grad=False)
            self._own.append(own)
        first = torch.tensor([network.layers[0].p for network in networks])
        self._set_rate(self._own[0], first.to(device))

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned, [members, ...] each."""
        return [value for own in self._own for value in own.values() if value.requires_grad]

    @property
    def weights(self) -> list[Tensor]:
        """The weight matrices [members, fan_out, fan_in] of the linear layers, from the input."""
        layers = zip(self._layers, self._own, strict=True)
        return [own["weight"] for layer, own in layers if isinstance(layer, nn.Linear)]

    @property
    def state(self) -> dict[str, Tensor]:
        """What `MLP.state_dict` holds, for all members."""
        layers = enumerate(zip(self._layers, self._own, strict=True))
        return {
            f"layers.{i}.{k}": own[k].detach() for i, (f, own) in layers for k in f.state_dict()
        }

    def set_dropout(self, rates: Tensor) -> None:
        """Set the members' rates [members] of the hidden layers' dropout."""
        for layer, own in zip(self._layers[1:], self._own[1:], strict=True):
            if isinstance(layer, Dropout):
                self._set_rate(own, rates)

    def _set_rate(self, own: Own, rates: Tensor) -> None:
        own.clear()
        if bool((rates > 0).any()):
            own["p"] = rates[:, None, None]
            own["threshold"] = ((own["p"] * 2**16).int() - 2**15).short()

    def keep(self, members: list[int]) -> None:
        """Go on with these members alone."""
        for own in self._own:
            for name, value in own.items():
                kept = value.detach()[members]
                own[name] = kept.requires_grad_(value.requires_grad)

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        """Logits [members, batch, outputs] of standardised inputs."""
        for layer, own in zip(self._layers, self._own, strict=True):
            x = _FORWARD[type(layer)](layer, own, x, training)
        return x
