"""The study in MLflow: one run, the parent of its trials' runs, kept current by the recorder."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial, TrialState

from perceptrail import recorder
from perceptrail.search.ledger import LOST, REASON
from perceptrail.search.plots import FOLDER, PAGE
from perceptrail.search.results import BEST, TRIALS, Standing

NOTE = "mlflow.note.content"
OUTCOMES = {TrialState.COMPLETE: "COMPLETE", TrialState.PRUNED: "PRUNED"}


def store(config: DictConfig) -> tuple[str, str] | None:
    """The MLflow store and experiment that a configuration's runs are recorded in, if they are."""
    uri = OmegaConf.select(config, "tracking.uri")
    known = uri is not None and {"experiment", "parent"} <= set(config.tracking)
    return (uri, config.tracking.experiment) if known else None


class Records:
    """Keeps a study's run in MLflow current, without waiting for it before the end.

    `key` names the study; the run of a trial gets it as `tracking.parent`.
    """

    def __init__(
        self, place: tuple[str, str], *, key: str, name: str, folder: Path, facts: Mapping[str, Any]
    ) -> None:
        self.key, self._name, self._dir = key, name, folder
        self._line = recorder.connect(*place)
        command = shlex.join([Path(sys.executable).name, *sys.argv])
        tags = {"mlflow.source.name": Path(sys.argv[0]).name, "command": command}
        self._line.post(
            "open_study", key=key, name=name, run_dir=str(folder), owner=os.getpid(), tags=tags
        )
        self._post("log_params", {k: str(v) for k, v in facts.items()} | {"command": command})

    def wait(self) -> None:
        """Wait until the study's run is there for other processes to find."""
        self._line.call("ping", self.key)

    def begin(self, standing: Standing) -> None:
        """Record what an earlier process had no time to record."""
        self._post("log_files", [str(self._dir / "multirun.yaml")], folder="config")
        self._post("mark_trials", _ended(standing.trials))
        self._post("set_tags", {NOTE: self._about()})

    def trial(self, number: int, standing: Standing) -> None:
        """Record how a trial has ended, and where the study stands."""
        for n, (outcome, reason) in _ended(standing.trials, only=number).items():
            self._post("mark_trial", n, outcome=outcome, reason=reason)
        counts = {f"trials/{name}": float(n) for name, n in standing.counts.items()}
        best = {f"best/{name}": value for name, value in standing.extremes.items()}
        files, tags = [self._dir / TRIALS], {}
        if standing.best:
            first = standing.best[0]
            shown = " ".join(f"{name}={value}" for name, value in first.params.items())
            tags = {"best.trial": str(first.number), "best.params": shown}
            files.append(self._dir / BEST)
        self._post("log_metrics", counts | best, step=len(standing.trials), tags=tags)
        self._post("log_files", [str(path) for path in files])

    def figures(self) -> None:
        """Record the figures as they are."""
        files = sorted(str(path) for path in (self._dir / FOLDER).glob("[!0-9]*"))
        self._post("log_files", files, folder=FOLDER)

    def end(self, standing: Standing, *, status: str, note: str) -> None:
        """Record the end, and wait until all is recorded. Raises UserError if something was not."""
        self.figures()
        self._post("mark_trials", _ended(standing.trials))
        if standing.best:
            name = re.sub("[/:]", "-", self._name)  # characters that MLflow keeps for itself
            self._post("register_best", standing.best[0].number, name=name)
        self._post("set_tags", {NOTE: f"{self._about()}\n\n{note}"})
        self._post("close_study", status=status)
        self._line.call("ping", self.key)

    def _about(self) -> str:
        return (
            f"Search **{self._name}**. The runs below it are its trials; the tag "
            "`perceptrail.outcome` says how each ended. Parameters: what is searched and how. "
            "Metrics: the best values so far and the numbers of trials. Artifacts: `trials.csv`, "
            f"`best.yaml` (a configuration to train again), `{FOLDER}/{PAGE}`."
        )

    def _post(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._line.post("in_study", self.key, method, *args, **kwargs)


def _ended(trials: Iterable[FrozenTrial], *, only: int | None = None) -> dict[int, tuple[str, str]]:
    """The outcome and reason of each trial that has ended, by number."""
    return {
        t.number: (_outcome(t), t.user_attrs.get(REASON, ""))
        for t in trials
        if t.state.is_finished() and only in (None, t.number)
    }


def _outcome(trial: FrozenTrial) -> str:
    return OUTCOMES.get(trial.state) or ("KILLED" if trial.user_attrs.get(LOST) else "FAILED")
