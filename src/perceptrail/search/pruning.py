"""The Lightning callback by which a training is compared with other trials, and pruned."""

from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from perceptrail.search.running import RunningTrial


class Pruning(Callback):
    """Reports the monitored value after each epoch, and ends a training that is not worth going on.

    What a search makes of it is told once the run is closed, by `end`.
    """

    def __init__(self, trial: RunningTrial, *, monitor: str) -> None:
        self._trial, self._monitor = trial, monitor
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, ask, stop."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.is_global_zero:
            self.consider(float(trainer.callback_metrics[self._monitor]), trainer.current_epoch)
        self.pruned = trainer.strategy.reduce_boolean_decision(self.pruned, all=False)
        trainer.should_stop = trainer.should_stop or self.pruned

    def consider(self, value: float, epoch: int) -> bool:
        """Report an epoch's value; whether that makes the training not worth going on."""
        self.pruned = self._trial.judge(value, epoch)
        return self.pruned

    def end(self, reached: Mapping[str, float]) -> None:
        """Tell the search what the run has reached; raises `optuna.TrialPruned` if it was ended."""
        for name, value in reached.items():
            self._trial.set_user_attr(name, value)
        if self.pruned:
            from optuna import TrialPruned

            raise TrialPruned
