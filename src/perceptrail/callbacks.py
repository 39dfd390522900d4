"""Hooks of a training: repeatable randomness, its history, schedules, averages, progress, NaN."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from math import expm1
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor
from tqdm import tqdm

from perceptrail.classifier import Classifier
from perceptrail.data.module import Batches
from perceptrail.data.stream import Streamed
from perceptrail.errors import UserError
from perceptrail.runs import BEST, LAST
from perceptrail.schedules import DROPOUT_SCHEDULES

Row = dict[str, float]

CURES = "try a lower optimizer.lr, regularization.gradient_clip=1, or model.norm=batch"


class DivergenceError(UserError):
    """The loss is no longer a finite number."""


def steps_made(trainer: Trainer, module: LightningModule) -> int:
    """How many optimizer steps have been made."""
    return module.step if isinstance(module, Classifier) else trainer.global_step


def steps_whole(trainer: Trainer, module: LightningModule) -> int:
    """How many the whole training has."""
    if isinstance(module, Classifier):
        return module.steps
    return int(trainer.estimated_stepping_batches) * max(1, len(trainer.optimizers))


class EpochSeed(Callback):
    """Makes each epoch's random numbers a function of the seed, the epoch and the process.

    A run that is resumed at an epoch therefore goes on exactly as if it had never stopped.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed PyTorch anew."""
        source = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank])
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))


class ScheduledDropout(Callback):
    """Moves the hidden layers' dropout rate along one of `DROPOUT_SCHEDULES`, step by step."""

    def __init__(self, schedule: str, *, start: float, end: float, cutoff: float) -> None:
        self._rate, self._moves = DROPOUT_SCHEDULES[schedule], schedule != "constant"
        self._start, self._end, self._cutoff = start, end, cutoff

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the rate set before every step."""
        assert isinstance(pl_module, Classifier)
        network, self.rate = pl_module.network, math.nan
        if self._moves and pl_module.device.type == "cuda":
            network.hold_dropout(pl_module.device)

        def set_rate(t: float) -> None:
            rate = self._rate(t, self._start, self._end, self._cutoff)
            if rate != self.rate:
                network.set_dropout(rate)
                self.rate = rate

        pl_module.before_step.append(set_rate)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the rate be a number again."""
        assert isinstance(pl_module, Classifier)
        pl_module.network.hold_dropout(None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the rate."""
        pl_module.log("dropout", self.rate)


class WeightAveraging(Callback):
    """Keeps a running mean of the weights; validation and checkpoints see it instead of them.

    Its memory fades by 1/e in `horizon`, a share of the training; in the first such share it is the
    plain mean. Batch-norm statistics are averaged along. Polyak & Juditsky 1992, "Acceleration of
    stochastic approximation by averaging"; fading as in Tarvainen & Valpola 2017, arXiv:1703.01780.
    """

    def __init__(self, *, horizon: float) -> None:
        self._horizon = horizon
        self._mean: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the weights as they are, or go on."""
        if self._mean is None:
            self._mean = {name: value.clone() for name, value in _floats(pl_module).items()}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where a chunk of steps begins."""
        self._step = steps_made(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mix in the weights that the chunk ended with, as if all its steps had had them."""
        assert self._mean is not None
        step, steps = steps_made(trainer, pl_module), steps_whole(trainer, pl_module)
        if (new := step - self._step) == 0:
            return  # gradients are being gathered
        share = max(new / step, -expm1(-new / (self._horizon * steps)))
        for mean, value in zip(self._mean.values(), _floats(pl_module).values(), strict=True):
            mean.lerp_(value, share)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the mean in the network."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        assert self._mean is not None
        for mean, value in zip(self._mean.values(), _floats(pl_module).values(), strict=True):
            weights = value.clone()
            value.copy_(mean)
            mean.copy_(weights)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the mean as the network, and the weights that training goes on from beside it."""
        assert self._mean is not None
        checkpoint["trained"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = {**checkpoint["trained"], **self._mean}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take both up again."""
        pl_module.load_state_dict(checkpoint["trained"])
        stored, own = checkpoint["state_dict"], _floats(pl_module)
        self._mean = {name: stored[name].to(value.device) for name, value in own.items()}


def _floats(module: LightningModule) -> dict[str, Tensor]:
    return {k: v for k, v in module.state_dict().items() if v.is_floating_point()}


class StopOnDivergence(Callback):
    """Ends the run with a `DivergenceError` when a training loss is NaN or infinite.

    Looks after every chunk of steps; on a GPU, where a look waits for the device, once an epoch.
    """

    def __init__(self) -> None:
        self._seen = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the epoch's first step."""
        self._seen = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the chunk's steps."""
        if pl_module.device.type == "cpu":
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps not yet seen, and at what the last one made of the weights."""
        self._look(trainer, pl_module)
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val") and "loss" in name and not value.isfinite().all():
                raise DivergenceError(
                    f"{name} became {float(value)} after epoch {trainer.current_epoch + 1}: {CURES}"
                )

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier):
            return
        unseen = pl_module.step_losses[self._seen :]
        if not unseen:
            return
        losses = torch.stack(unseen)
        bad = (~losses.isfinite()).nonzero()
        if len(bad) > 0:
            first = int(bad[0])
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            raise DivergenceError(
                f"train/loss became {float(losses[first])} at step "
                f"{pl_module.step - len(losses) + first} (epoch {trainer.current_epoch + 1}, "
                f"learning rate {rate:.3g}): {CURES}"
            )
        self._seen += len(unseen)


class History(Checkpoint):
    """Gathers the metrics of each epoch into a row and hands it on; survives in the checkpoint.

    A `Checkpoint` only because Lightning calls those last in an epoch, when all is logged.

    A row maps metric names to numbers, with `epoch` (counted from 1 finished epoch), `step`
    (optimizer steps so far), `lr`, and `train/samples_per_second` over the training batches alone.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.receive: Callable[[Row], None] = lambda row: None
        self._started = self._trained = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._trained = _clock(pl_module), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: an epoch's validation comes after its last training batch."""
        if not trainer.sanity_checking:
            self._trained = _clock(pl_module) - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the row."""
        seconds = self._trained or _clock(pl_module) - self._started
        samples = _epoch_samples(trainer, pl_module) * trainer.world_size
        metrics = {name: float(v) for name, v in _of_epoch(trainer.callback_metrics).items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": steps_made(trainer, pl_module),
            **metrics,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train/samples_per_second": samples / seconds,
        }
        self.rows.append(row)
        self.receive(row)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after stored rows; handed on again, for one may have been lost on its way."""
        self.rows = list(state_dict["rows"])
        for row in self.rows:
            self.receive(row)


def _of_epoch(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was logged of the epoch, without the last step's value of what was logged of both."""
    return {
        name: value
        for name, value in metrics.items()
        if not (name.endswith("_step") and f"{name.removesuffix('_step')}_epoch" in metrics)
    }


def _epoch_samples(trainer: Trainer, module: LightningModule) -> int:
    if isinstance(module, Classifier):
        return module.epoch_samples
    loader = trainer.train_dataloader
    assert isinstance(loader, Batches | Streamed)
    return loader.samples(int(trainer.num_training_batches))


class Checkpoints(Checkpoint):
    """Writes last.ckpt after every epoch, and best.ckpt when the monitored metric is the best yet.

    Each file is replaced in one step, so that there is a whole one at whatever moment the process
    dies.
    """

    def __init__(self, folder: Path, *, monitor: str, mode: str) -> None:
        self._folder, self._monitor = folder, monitor
        self._sign = 1 if mode == "min" else -1
        self._best: float | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch.

        Raises `UserError` if a module of one's own does not log what is monitored.
        """
        logged = trainer.callback_metrics
        if self._monitor not in logged:
            raise UserError(
                f"monitor.metric={self._monitor}: must be what the module logs once an epoch: "
                f"{', '.join(logged) or 'nothing'}"
            )
        value = self._sign * float(logged[self._monitor])
        is_best = self._best is None or value < self._best
        self._best = value if is_best else self._best
        draft = self._folder / "draft.ckpt"
        trainer.save_checkpoint(draft)  # on every process: a distributed strategy may need them all
        if trainer.is_global_zero:
            if is_best:
                copy = shutil.copy(draft, self._folder / "draft_best.ckpt")
                Path(copy).replace(self._folder / BEST)
            draft.replace(self._folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a stored value."""
        self._best = state_dict["best"]


def _clock(module: pl.LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


class Progress(Checkpoint):
    """One bar for the whole training on a terminal and in a notebook, else one line an epoch.

    A `Checkpoint` for the same reason as `History`.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the place where a resumed run goes on."""
        in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
        watched = sys.stderr.isatty() or in_notebook
        if self._bar is None and trainer.is_global_zero and watched:
            made, whole = steps_made(trainer, pl_module), steps_whole(trainer, pl_module)
            self._bar = tqdm(total=whole, initial=made, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the chunk's steps; tqdm itself draws ten times a second at most."""
        if self._bar is not None:
            self._bar.update(steps_made(trainer, pl_module) - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the epoch went."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        metrics = trainer.callback_metrics
        shown = sorted(
            (name for name in _of_epoch(metrics) if name.startswith(("train", "val"))),
            key=lambda name: not name.startswith("train"),
        )
        figures = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
        if self._bar is not None:
            self._bar.set_description(epoch, refresh=False)
            self._bar.set_postfix_str(figures, refresh=False)
        elif trainer.is_global_zero:
            print(f"{epoch}  {figures}", flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
