"""LightningModules as users have them: they know nothing of perceptrail."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F


class Lit(LightningModule):
    """A classifier as tutorials write it: names with underscores, a scheduler, hyperparameters."""

    between = "_"

    def __init__(self, inputs: int, outputs: int, width: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        outputs = max(outputs, 2)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def _log(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(f"{stage}{self.between}loss", loss, on_step=False, on_epoch=True)
        self.log(f"{stage}{self.between}acc", (logits.argmax(1) == y).float().mean(), on_epoch=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._log("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._log("test", batch)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)]


class Slashed(Lit):
    """It names what it logs as perceptrail does."""

    between = "/"


class Autoencoder(LightningModule):
    """It has no outputs to be asked for, no test_step, and two optimizers that it steps itself."""

    def __init__(self, shape: list[int], code: int = 3) -> None:
        super().__init__()
        self.automatic_optimization = False
        size = torch.Size(shape).numel()
        self.encode, self.decode = nn.Linear(size, code), nn.Linear(code, size)

    def _error(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return F.mse_loss(self.decode(self.encode(x).tanh()), x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = self._error(batch[0])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._error(batch[0]))

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.encode, self.decode)]


class Net(nn.Module):
    """A network of pictures, with dropout of its own."""

    def __init__(self, shape: list[int], outputs: int, width: int = 4, rate: float = 0.1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(shape[0], width, 3), nn.ReLU(), nn.Dropout(rate))
        self.head = nn.LazyLinear(outputs)
        self.head(self.features(torch.zeros(1, *shape)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Plain(nn.Module):
    """Rows through two layers, with dropout between them."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.between = nn.Linear(inputs, 16), nn.ReLU()
        self.drop, self.last = nn.Dropout(dropout), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.between(self.first(x))))


class Rich(nn.Module):
    """Batch norm, weights that two layers share, a part that nothing uses."""

    def __init__(self, shape: list[int], outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.encode, self.decode = nn.Linear(64, 64), nn.Linear(64, 64)
        self.decode.weight = self.encode.weight
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean(1).flatten(1)
        return self.head(self.decode(self.encode(x).tanh()))


class Recurrent(Plain):
    """Of what PyTorch has no rule to do for many at once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lstm = nn.LSTM(1, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[..., None])[0][:, -1])


class Peeking(Plain):
    """It decides by a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() > 0 else super().forward(-x)


class Hidden(Plain):
    """It has numbers that are neither parameters nor buffers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.signs = torch.randn(inputs).sign()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.signs)


class Replacing(Plain):
    """It puts a new tensor in the place of its buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps = self.steps + 1
        return super().forward(x)


class Hooked(Plain):
    """It is listened to."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.between.register_forward_hook(lambda layer, x, y: None)


class Alpha(Plain):
    """A kind of dropout whose rate cannot be a tensor."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.drop = nn.AlphaDropout(dropout)


class Wide(Plain):
    """Large enough to keep a processor busy."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.first, self.last = nn.Linear(inputs, 16384), nn.Linear(16384, outputs)


class Focal(nn.Module):
    """A loss in which what is known already counts for little."""

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        log = outputs.log_softmax(1).gather(1, y[:, None])
        return -((1 - log.exp()).square() * log).mean()


class Hinge(nn.MultiMarginLoss):
    """A loss that PyTorch has no rule to compute for many at once."""


class Margin(nn.Module):
    """A loss with a parameter to be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.scale, y)


class Rounded(nn.Module):
    """A loss that decides by a number."""

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, y)
        return loss if loss.item() > 0.1 else 0 * loss
