"""Where trials run: in this process, or through a Hydra launcher. (Worker processes: workers.py.)

An engine takes trials by `submit` while it has free `slots`, and `wait` returns those that ended.
"""

import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna import TrialPruned
from optuna.trial import TrialState

from perceptrail.errors import UserError
from perceptrail.passwords import masked
from perceptrail.search.jobs import Composer, run_job


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with values, or with a reason; lost if its process did not survive."""

    number: int
    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str = ""
    details: str = ""
    lost: bool = False


class Engine(Protocol):
    """What the sweeper needs of a place where trials run."""

    slots: int

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Take on a trial."""

    def wait(self) -> list[Outcome]:
        """Wait until at least one trial has ended."""
        ...

    def close(self) -> None:
        """Stop what is still under way, and leave no process behind."""


@dataclass(frozen=True)
class Task:
    """What every trial of a search has in common."""

    context: HydraContext
    function: TaskFunction
    config: DictConfig
    objectives: int

    def composer(self) -> Composer:
        """A composer of its configurations."""
        loader = self.context.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        return Composer(loader, self.config)

    def run(self, composer: Composer, number: int, overrides: Sequence[str]) -> Outcome:
        """Run one trial here, as Hydra runs any job."""
        setup_globals()
        config = composer.compose(overrides)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
        job = run_job(config, function=self.function, context=self.context)
        return judge(number, job, objectives=self.objectives)


def judge(number: int, job: JobReturn, *, objectives: int) -> Outcome:
    """What a finished job means for its trial."""
    returned = job._return_value
    if job.status == JobStatus.FAILED:
        if isinstance(returned, TrialPruned):
            return Outcome(number, TrialState.PRUNED, reason=str(returned))
        details = "".join(traceback.format_exception(returned))
        expected = isinstance(returned, UserError)
        reason = str(returned) if expected else f"{type(returned).__name__}: {returned}"
        return Outcome(number, TrialState.FAIL, reason=reason, details="" if expected else details)
    values = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
    if len(values) != objectives or not all(_is_finite(value) for value in values):
        reason = f"it returned {returned}, where {objectives} finite number(s) were to come"
        return Outcome(number, TrialState.FAIL, reason=reason)
    return Outcome(number, TrialState.COMPLETE, values=tuple(float(value) for value in values))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


class InProcess:
    """One trial after the other, in this process."""

    slots = 1

    def __init__(self, task: Task) -> None:
        self._task, self._composer = task, task.composer()
        self._next: list[tuple[int, Sequence[str]]] = []

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Take on a trial."""
        self._next.append((number, overrides))

    def wait(self) -> list[Outcome]:
        """Run it."""
        try:
            return [self._task.run(self._composer, *self._next.pop())]
        finally:
            hydra = self._task.config.hydra
            configure_log(hydra.hydra_logging, hydra.verbose)  # the job had its own

    def close(self) -> None:
        """Nothing is left."""


class Launched:
    """Batches through one of Hydra's launchers, which decides where they run."""

    def __init__(self, task: Task, launcher: Launcher, *, slots: int) -> None:
        self.slots, self._objectives, self._launcher = slots, task.objectives, launcher
        self._batch: list[tuple[int, Sequence[str]]] = []
        self.returns: list[Sequence[JobReturn]] = []

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Take on a trial."""
        self._batch.append((number, overrides))

    def wait(self) -> list[Outcome]:
        """Launch the batch and wait for all of it."""
        # A launcher numbers its jobs on from the first, so a gap in the numbers ends a batch.
        first = self._batch[0][0]
        whole = [n for i, (n, _) in enumerate(self._batch) if n == first + i]
        batch, self._batch = self._batch[: len(whole)], self._batch[len(whole) :]
        jobs = self._launcher.launch([overrides for _, overrides in batch], initial_job_idx=first)
        self.returns.append(jobs)
        for job in jobs:  # whose configurations Hydra has written with all that they hold
            assert job.hydra_cfg is not None
            for path in Path(job.hydra_cfg.hydra.runtime.output_dir).glob(".hydra/*.yaml"):
                path.write_text(masked(path.read_text()))
        return [
            judge(number, job, objectives=self._objectives)
            for (number, _), job in zip(batch, jobs, strict=True)
        ]

    def close(self) -> None:
        """Nothing is left: a launch ends with its last job."""
