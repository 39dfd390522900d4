"""Callbacks that `train.py` is given by override, to measure it from within."""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from benchmarks.loop import Loop, matmul_peak


class Rival(pl.Callback):
    """After each of perceptrail's epochs, one of the hand-written loop, and the machine's peak.

    The machine's speed drifts by a factor of two within minutes, and less within seconds. Writes a
    line of JSON an epoch: `seconds` and `accuracy` of the loop, `peak` in operations a second.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._loop: Loop | None = None

    @torch.enable_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train the loop for an epoch; the next epoch's random numbers are seeded anew."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._loop is None:
            architecture: Any = pl_module.network.architecture  # type: ignore[union-attr]
            x, y = data.train
            self._loop = Loop(
                (x - data.mean) / data.std,
                y,
                hidden=architecture["hidden"],
                dropout=architecture["dropout"],
                classes=data.outputs,
                batch=data.batch_size,
                rate=trainer.optimizers[0].defaults["lr"],
            )
        seconds = self._loop.epoch()
        x, y = data.val
        accuracy = self._loop.accuracy((x - data.mean) / data.std, y)
        row = {"seconds": seconds, "accuracy": accuracy, "peak": matmul_peak()}
        with self._path.open("a") as file:
            print(json.dumps(row), file=file)


class Stamps(pl.Callback):
    """Writes the seconds from the start of the process to the first moments of a training."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._start = psutil.Process().create_time()
        self._seconds: dict[str, float] = {}
        self._stamp("data and network made")

    def _stamp(self, name: str) -> None:
        self._seconds.setdefault(name, time.time() - self._start)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first epoch."""
        self._stamp("record opened, trainer ready")

    def on_train_batch_end(self, *_: Any) -> None:
        """After the first step, if each step is a chunk of its own."""
        self._stamp("first step made")
        self._path.write_text(json.dumps(self._seconds))
