"""Data as users have them: Datasets that draw at random, and a LightningDataModule."""

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

N = 600


def rings(n: int = N, seed: int = 0):
    """Points in two rings [n, 2], and the number of each one's ring."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    angle, radius = rng.uniform(0, 2 * np.pi, n), 1.0 + y + rng.normal(0, 0.1, n)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


class Jittered(Dataset):
    """Every look at an example draws anew; its first value tells which one it is."""

    classes = ("inner", "outer")

    def __init__(self, n: int = N) -> None:
        self.x, self.y = rings(n)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int):
        x = torch.cat([torch.tensor([float(i)]), self.x[i] + 0.05 * torch.randn(2)])
        return x, self.y[i]


class Rings(pl.LightningDataModule):
    """Loaders of three parts, of its own batch size."""

    def __init__(self, batch_size: int = 50, workers: int = 1) -> None:
        super().__init__()
        self._how = {"batch_size": batch_size, "num_workers": workers}
        self.stages: list[str] = []

    def setup(self, stage: str) -> None:
        self.stages.append(stage)
        self.parts = [TensorDataset(*rings(n, seed)) for n, seed in ((N, 0), (200, 1), (300, 2))]

    def train_dataloader(self):
        return DataLoader(self.parts[0], shuffle=True, **self._how)

    def val_dataloader(self):
        return DataLoader(self.parts[1], **self._how)

    def test_dataloader(self):
        return DataLoader(self.parts[2], **self._how)


class Wrong(Rings):
    """Labels that its first examples do not show."""

    classes = ("inner",)


class Triples(Rings):
    """Batches of three."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(*rings(), torch.arange(N)), **self._how)
