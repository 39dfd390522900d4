"""A callback by which a training ends as the kernel ends it."""

import os
import signal
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer


class Kill(Callback):
    """Kills the process, once, after the validation of an epoch, before anything is kept of it."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a mark, and die."""
        mark = Path("killed")
        if trainer.current_epoch == self._epoch and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
