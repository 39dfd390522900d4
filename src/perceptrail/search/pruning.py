"""The one callback by which a trial, wherever it runs, is compared with the others and pruned."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from perceptrail.search.storage import PRUNER, build, open_storage


class Pruning(Callback):
    """Reports the monitored value after each epoch, and ends a training that is not worth going on.

    `trial` names the trial: {study, storage, number}. All else, the pruner too, comes out of the
    storage, so the trial may run in any process on any machine that reaches it.
    """

    def __init__(self, trial: Mapping[str, Any], *, monitor: str) -> None:
        storage = open_storage(trial["storage"])
        # The parameters are drawn already; the sampler only has to be cheap.
        study = optuna.load_study(
            study_name=trial["study"], storage=storage, sampler=RandomSampler()
        )
        study.pruner = build(BasePruner, study.user_attrs[PRUNER])
        number = int(trial["number"])
        self._trial = optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
        self._monitor = monitor
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
        if len(self._trial.study.directions) == 1:
            known = self._trial.storage.get_trial(self._trial._trial_id).intermediate_values
            if epoch not in known:  # a resumed training repeats the epoch that it was killed in
                self._trial.report(value, epoch)
            self.pruned = bool(self._trial.should_prune())
        return self.pruned

    def raise_if_pruned(self) -> None:
        """Tell the search, once the run is closed: raises `optuna.TrialPruned`."""
        if self.pruned:
            raise optuna.TrialPruned
