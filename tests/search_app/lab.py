"""Running searches of the application in this folder, in this process or as a command."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna import Study

from perceptrail.search.storage import open_storage

HERE = Path(__file__).parent
OUTCOME, NUMBER, PARENT = "perceptrail.outcome", "trial.number", "mlflow.parentRunId"


def bowl(cfg: DictConfig) -> float:
    """Lowest at x = 0.5, y = 2, and better with fewer units."""
    return float((cfg.x - 0.5) ** 2 + (cfg.y - 2) ** 2 + 0.01 * sum(cfg.model.hidden))


def search(
    folder: Path, *overrides: str, task: Callable[[DictConfig], Any] = bowl, sampler: str = "random"
) -> Study:
    """Search in this process, results in `folder`, and open the study."""
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
            GlobalHydra.instance().hydra.multirun(
                config_name="config",
                task_function=task,
                overrides=[
                    "hydra/sweeper=optuna",
                    f"hydra/sweeper/sampler={sampler}",
                    f"hydra.sweep.dir={folder}",
                    "hydra.sweeper.figures=false",
                    *overrides,
                ],
            )
    finally:
        HydraConfig.instance().cfg = before
    return opened(folder)


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of a search with results in `folder`."""
    given = ["-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={folder}"]
    given += ["hydra.sweeper.figures=false", *overrides]
    return [sys.executable, str(HERE / "app.py"), *given]


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Search as a command, which has five minutes to end."""
    return subprocess.run(
        command(folder, *overrides), capture_output=True, text=True, check=False, timeout=300
    )


def opened(folder: Path, name: str = "app") -> Study:
    """The study of a search, read anew from its journal."""
    open_storage.cache_clear()
    storage = open_storage(str(folder / "study.journal"))
    return optuna.load_study(study_name=name, storage=storage)


class Tree:
    """A study's run and those of its trials, in the order of their numbers.

    `below` are the runs of each trial, by the id of its own.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        from mlflow.tracking import MlflowClient  # two seconds, and not for every test

        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        known = self.client.get_experiment_by_name(experiment)
        runs: list[Any] = list(self.client.search_runs([known.experiment_id]))
        parents = [r for r in runs if PARENT not in r.data.tags]
        assert len(parents) == 1
        self.parent = parents[0]
        self.children = sorted(
            (r for r in runs if r.data.tags.get(PARENT) == self.parent.info.run_id),
            key=lambda r: int(r.data.tags[NUMBER]),
        )
        above = {r.info.run_id for r in self.children}
        self.below = {one: [r for r in runs if r.data.tags.get(PARENT) == one] for one in above}
        assert len(runs) == 1 + len(above) + sum(map(len, self.below.values()))

    @property
    def outcomes(self) -> dict[int, str]:
        """How each trial ended."""
        pairs = [(int(r.data.tags[NUMBER]), r.data.tags[OUTCOME]) for r in self.children]
        assert len(dict(pairs)) == len(pairs)  # no trial twice
        return dict(pairs)

    def files(self, folder: str | None = None) -> set[str]:
        """The names of the parent's files."""
        found = self.client.list_artifacts(self.parent.info.run_id, folder)
        return {Path(file.path).name for file in found}
