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

    def __init__(self, shape: list[int], outputs: int, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(shape[0], width, 3), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.LazyLinear(outputs)
        self.head(self.features(torch.zeros(1, *shape)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))
