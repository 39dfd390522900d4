"""The multi-layer perceptron, and how it is written to disk."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from perceptrail.activations import ACTIVATIONS
from perceptrail.linear import Linear

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
_INT64 = torch.iinfo(torch.int64)
WEIGHTS, ARCHITECTURE = "model.safetensors", "model.json"


def draw_mask(like: Tensor, threshold: Tensor | int) -> Tensor:
    """1 where 16 random bits, taken as a number from -2^15 on, reach the threshold; else 0.

    Of the shape, type and device of `like`; a tensor of thresholds is int16 and goes with it.
    """
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    drawn = bits.random_(_INT64.min, None).view(torch.int16)[: like.numel()].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    torch.ge(drawn, threshold, out=mask)
    return mask


class Dropout(nn.Dropout):
    """Dropout that on a processor costs a fifth: it draws 16 bits a value, PyTorch's a double.

    The rate is thereby rounded down to a multiple of 1/65536. Where `rate` is a tensor, it is that.
    """

    rate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `p` of x while training, and scale up the rest."""
        if self.training and self.rate is not None:
            return x * (torch.rand_like(x) >= self.rate) / (1 - self.rate)
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        return x * self.mask(x)

    def mask(self, like: Tensor) -> Tensor:
        """What values of such a shape are multiplied by."""
        return draw_mask(like, int(self.p * 2**16) - 2**15).mul_(1 / (1 - self.p))


class GaussianNoise(nn.Module):
    """Adds normal numbers of deviation `std` while training."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Noise of its own for each value of x."""
        return torch.add(x, torch.randn_like(x), alpha=self.std) if self.training else x


class Standardise(nn.Module):
    """Raw inputs less their mean, over their deviation: numbers, or one for each column."""

    def __init__(self, mean: float | list[float], std: float | list[float]) -> None:
        super().__init__()
        self.scale: float | Tensor  # 1 / std
        self.std: float | Tensor
        self.shift: Tensor
        if isinstance(mean, list) and isinstance(std, list):
            own = torch.tensor([mean, std], dtype=torch.float64)
            buffers = {"std": own[1], "scale": 1 / own[1], "shift": -own[0] / own[1]}
            for name, values in buffers.items():
                self.register_buffer(name, values.float(), persistent=False)
        else:
            assert isinstance(mean, int | float) and isinstance(std, int | float)
            self.shift = torch.tensor(-mean / std, dtype=torch.float64)  # taken as a number
            self.scale, self.std = 1 / std, std

    def forward(self, x: Tensor) -> Tensor:
        """Standardised inputs [..., inputs]."""
        if isinstance(self.scale, float):
            return torch.add(self.shift, x, alpha=self.scale)
        return torch.addcmul(self.shift, x, self.scale)


class MLP(nn.Module):
    """A multi-layer perceptron: [linear, norm, activation, dropout] for each hidden layer, linear.

    Maps [batch, inputs] to logits [batch, outputs]. Raw inputs are standardised first, by `mean`
    and `std` of the training data, or of each of its columns, so that a stored model needs nothing
    but itself. Weights start as normal numbers of variance gain²/fan_in (He et al. 2015,
    arXiv:1502.01852, section 2.2), the gain being that of the activation which a layer's inputs
    have gone through; biases start at 0.

    `input_noise` and `noise` are the deviations of Gaussian noise on the standardised inputs and
    before every activation, while training (Rasmus et al. 2015, arXiv:1507.02672, section 3.1).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        noise: float = 0.0,
        input_noise: float = 0.0,
        norm: str | None = None,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "inputs": inputs,
            "outputs": outputs,
            "hidden": list(hidden),
            "activation": activation,
            "dropout": dropout,
            "input_dropout": input_dropout,
            "noise": noise,
            "input_noise": input_noise,
            "norm": norm,
            "mean": mean,
            "std": std,
        }
        self.mean, self.std = mean, std
        self.standardise = Standardise(mean, std)
        f = ACTIVATIONS[activation]
        layers: list[nn.Module] = [Dropout(input_dropout)]
        if input_noise:
            layers.append(GaussianNoise(input_noise))
        gain = 1.0  # of what a layer's inputs have gone through: at first nothing
        for fan_in, width in pairwise([inputs, *hidden]):
            layers.append(_linear(fan_in, width, gain=gain))
            gain = f.gain
            if norm is not None:
                layers.append(NORMS[norm](width))
            if noise:
                layers.append(GaussianNoise(noise))
            layers.append(getattr(nn, f.module)(**f.options))
            layers.append(Dropout(dropout))
        layers.append(_linear([inputs, *hidden][-1], outputs, gain=gain))
        self.layers = nn.Sequential(*layers)
        self._dropouts = [layer for layer in layers[1:] if isinstance(layer, Dropout)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs] of raw inputs [batch, inputs]."""
        logits: Tensor = self.layers(self.standardise(x))
        return logits

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weight matrices [fan_out, fan_in] of the linear layers, from the input on."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return [layer.get_parameter("weight") for layer in linear]

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters())

    def set_dropout(self, rate: float) -> None:
        """Set the rate of the hidden layers' dropout; the inputs' stays."""
        for layer in self._dropouts:
            layer.p = rate
            if layer.rate is not None:
                layer.rate.fill_(rate)

    def hold_dropout(self, device: torch.device | None) -> None:
        """Have the hidden layers' rate in a tensor there, for steps to be recorded; or no more."""
        for layer in self._dropouts:
            layer.rate = None if device is None else torch.tensor(layer.p, device=device)

    def save(self, folder: Path, **facts: Any) -> None:
        """Write weights (safetensors), architecture (JSON) and further `facts` to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(save(self.state_dict()))  # for all who may read the folder
        described = json.dumps({"architecture": self.architecture, **facts}, indent=2)
        (folder / ARCHITECTURE).write_text(described + "\n")

    @classmethod
    def load(cls, folder: Path) -> tuple["MLP", dict[str, Any]]:
        """Read what `save` wrote: the network, ready to predict, and the further facts."""
        facts = json.loads((folder / ARCHITECTURE).read_text())
        network = cls(**facts.pop("architecture"))
        network.load_state_dict(load_file(folder / WEIGHTS))
        return network.eval(), facts


def _linear(fan_in: int, fan_out: int, *, gain: float) -> nn.Linear:
    layer = Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
    nn.init.zeros_(layer.bias)
    return layer
