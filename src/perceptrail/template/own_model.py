"""The network of this project."""

import torch
from torch import Tensor, nn


class Waves(nn.Module):
    """One hidden layer of sines.

    `inputs` and `outputs` come from the data, because they are asked for by these names.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.leave = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs] of standardised inputs [batch, inputs]."""
        logits: Tensor = self.leave(torch.sin(self.enter(x)))
        return logits
