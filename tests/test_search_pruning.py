"""Pruning in real trainings of a module with scripted losses."""

from pathlib import Path

import optuna
import pytest
import pytorch_lightning as pl
import torch
from optuna import Study
from optuna.trial import TrialState
from torch.utils.data import DataLoader

from perceptrail.search import RunningTrial
from perceptrail.search.pruning import Pruning
from perceptrail.search.storage import open_storage


class Scripted(pl.LightningModule):
    """A module whose validation loss follows a script, epoch by epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses = losses

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Anything."""
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        """The next line of the script."""
        self.log("val/loss", self.losses[self.current_epoch], prog_bar=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Any."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def begun(path: Path, pruner: dict[str, object], directions: int = 1) -> Study:
    study = optuna.create_study(
        study_name="s",
        storage=open_storage(str(path)),
        directions=["minimize"] * directions,
    )
    study.set_user_attr("pruner", pruner)
    return study


def train(study: Study, path: Path, losses: list[float]) -> Pruning:
    place = {"study": "s", "storage": str(path), "number": study.ask().number}
    return fit(Pruning(RunningTrial(place), monitor="val/loss"), losses)


def fit(pruning: Pruning, losses: list[float]) -> Pruning:
    data = DataLoader(torch.ones(4, 1), num_workers=0)
    trainer = pl.Trainer(
        max_epochs=len(losses),
        accelerator="cpu",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Scripted(losses), data, data)
    return pruning


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fill_uninitialized_memory.*:UserWarning"),
]

THRESHOLD = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 5.0}


def test_reports_each_epoch_and_stops_where_told(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = begun(path, THRESHOLD)
    pruning = train(study, path, [1.0, 3.0, 7.0, 1.0])
    assert pruning.pruned
    assert study.trials[0].intermediate_values == {0: 1.0, 1: 3.0, 2: 7.0}
    with pytest.raises(optuna.TrialPruned):
        pruning.end({"val/acc": 0.5})


def test_lets_a_good_trial_go_on(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = begun(path, THRESHOLD)
    pruning = train(study, path, [1.0, 3.0])
    pruning.end({"val/acc": 0.5})
    assert study.trials[0].intermediate_values == {0: 1.0, 1: 3.0}
    assert study.trials[0].user_attrs == {"val/acc": 0.5}
    assert study.trials[0].state == TrialState.RUNNING  # the sweeper says how it ended


def test_compares_with_trials_of_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    median = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 1}
    study = begun(path, median)
    study.tell(train(study, path, [3.0, 2.0, 1.0])._trial.number or 0, 1.0)
    assert train(study, path, [4.0, 4.0, 1.0]).pruned
    assert sorted(study.trials[1].intermediate_values) == [0, 1]


def test_a_step_reported_twice_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = begun(path, THRESHOLD)
    pruning = train(study, path, [1.0, 2.0])
    fit(pruning, [3.0, 4.0, 2.5])
    assert study.trials[0].intermediate_values == {0: 1.0, 1: 2.0, 2: 2.5}


def test_several_objectives_are_never_pruned(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = begun(path, THRESHOLD, directions=2)
    assert not train(study, path, [9.0, 9.0]).pruned
    assert study.trials[0].intermediate_values == {}
