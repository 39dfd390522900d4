"""Networks of one architecture as one: each layer computes all of them at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perceptrail.activations import ACTIVATIONS
from perceptrail.gradient import Back, by_autograd, walk_back
from perceptrail.linear import INTEL, Linear, is_large, product
from perceptrail.model import MLP, Dropout, GaussianNoise, draw_mask

Own = dict[str, Tensor]  # what the members have of one layer, each [members, ...]


def _linear(layer: nn.Module, own: Own, x: Tensor, training: bool) -> tuple[Tensor, Back]:
    weight, bias = own["weight"], own["bias"]
    _, fan_out, fan_in = weight.shape
    by_mkl = INTEL and weight.device.type == "cpu"  # which is ahead where products come in numbers
    large = is_large(weight) and not by_mkl

    def back(g: Tensor, needed: bool) -> Tensor | None:
        bias.grad = g.sum(1)
        if large:
            weight.grad = _each(g.mT, x.mT)
            return _each(g, weight.mT) if needed else None
        # Small ones are faster with their longer side last, but by MKL.
        last = fan_in < fan_out and not by_mkl
        weight.grad = x.mT.bmm(g).mT.contiguous() if last else g.mT.bmm(x)
        if not needed:
            return None
        return g * weight if fan_out == 1 else torch.bmm(g, weight)

    if large:
        return _each(x, weight, bias), back
    if fan_out > 1:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT), back
    y = x.new_empty(*x.shape[:2], 1)
    torch.baddbmm(bias.unsqueeze(2), weight, x.mT, out=y.view(len(y), 1, -1))
    return y, back


def _each(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """The members' products a @ b.T, for a [members, m, k] and b [members, n, k]."""
    biases: Iterable[Tensor | None] = repeat(None, len(a)) if bias is None else bias
    each = [product(*own) for own in zip(a, b, biases, strict=True)]
    return each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each)


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


def _dropout(layer: nn.Module, own: Own, x: Tensor, training: bool) -> tuple[Tensor, Back | None]:
    if not training or "p" not in own:
        return x, None
    mask = draw_mask(x, own["threshold"]).mul_(1 / (1 - own["p"]))
    return x * mask, lambda g, needed: g * mask


def _noise(layer: nn.Module, own: Own, x: Tensor, training: bool) -> tuple[Tensor, None]:
    return torch.addcmul(x, torch.randn_like(x), own["std"]) if training else x, None


def _activation(layer: nn.Module, own: Own, x: Tensor, training: bool) -> Tensor:
    y: Tensor = layer(x)
    return y


def _relu(layer: nn.Module, own: Own, x: Tensor, training: bool) -> tuple[Tensor, Back]:
    y = x.relu_()  # what comes before needs its output no more
    return y, lambda g, needed: torch.ops.aten.threshold_backward(g, y, 0)


Forward = Callable[[nn.Module, Own, Tensor, bool], tuple[Tensor, Back | None]]


def _differentiated(function: Callable[[nn.Module, Own, Tensor, bool], Tensor]) -> Forward:
    def forward(
        layer: nn.Module, own: Own, x: Tensor, training: bool
    ) -> tuple[Tensor, Back | None]:
        if not training:
            return function(layer, own, x, training), None
        return by_autograd(lambda x: function(layer, own, x, training), x)

    return forward


_FORWARD: Mapping[type[nn.Module], Forward] = {
    Linear: _linear,
    nn.BatchNorm1d: _differentiated(_batch_norm),
    nn.LayerNorm: _differentiated(_layer_norm),
    Dropout: _dropout,
    GaussianNoise: _noise,
    **{getattr(nn, f.module): _differentiated(_activation) for f in ACTIVATIONS.values()},
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
            self._own.append(own)
        learned = [any(value.requires_grad for value in own.values()) for own in self._own]
        self._first = learned.index(True)
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

    def set_dropout(self, rates: Tensor, *, on: bool | None = None) -> None:
        """Set the members' rates [members] of the hidden layers' dropout.

        Where none has any there is nothing to draw; whether it is `on` can be said in advance.
        """
        for layer, own in zip(self._layers[1:], self._own[1:], strict=True):
            if isinstance(layer, Dropout):
                self._set_rate(own, rates, on=on)

    def _set_rate(self, own: Own, rates: Tensor, *, on: bool | None = None) -> None:
        if not (bool((rates > 0).any()) if on is None else on):
            own.clear()
            return
        p = rates[:, None, None]
        for name, value in (("p", p), ("threshold", ((p * 2**16).int() - 2**15).short())):
            if name in own:
                own[name].copy_(value)  # where a recorded step finds it
            else:
                own[name] = value.clone()

    def keep(self, members: list[int]) -> None:
        """Go on with these members alone."""
        for own in self._own:
            for name, value in own.items():
                kept = value.detach()[members]
                own[name] = kept.requires_grad_(value.requires_grad)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits [members, batch, outputs] of standardised inputs."""
        return self._forward(x, training=False)[0]

    @torch.no_grad()
    def learn(self, x: Tensor, loss: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Leave the gradients of the members' losses in the parameters; the losses [members].

        `loss` takes logits to the losses, and their gradients by the logits.
        """
        logits, backs = self._forward(x, training=True)
        losses, gradient = loss(logits)
        walk_back(backs, gradient, end=self._first)
        return losses

    def _forward(self, x: Tensor, *, training: bool) -> tuple[Tensor, list[Back | None]]:
        backs = []
        for layer, own in zip(self._layers, self._own, strict=True):
            x, back = _FORWARD[type(layer)](layer, own, x, training)
            backs.append(back)
        return x, backs
