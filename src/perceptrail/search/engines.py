"""Where trials run: in this process, or through a Hydra launcher. (Worker processes: workers.py.)

An engine takes trials by `submit` while it has free `slots`, and `wait` returns those that ended.
"""

import gc
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

LONG_S = 0.5  # of a trial: to clear up after it takes a hundredth of a second


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with values, or with a reason; lost if its process did not survive."""

    number: int
    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str = ""
    details: str = ""
    lost: bool = False


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
        started = time.monotonic()
        job = run_job(config, function=self.function, context=self.context)
        outcome = judge(number, job, objectives=self.objectives)
        if time.monotonic() - started >= LONG_S:
            del job
            gc.collect()  # a training is a cycle of references, which would keep its data for long
        return outcome


def judge(number: int, job: JobReturn, *, objectives: int) -> Outcome:
    """What a finished job means for its trial."""
    returned = job._return_value
    if job.status == JobStatus.FAILED:
        if isinstance(returned, TrialPruned):
            return Outcome(number, TrialState.PRUNED, reason=str(returned))
        if isinstance(returned, UserError):
            return Outcome(number, TrialState.FAIL, reason=str(returned))
        reason = f"{type(returned).__name__}: {returned}"
        details = "".join(traceback.format_exception(returned))
        return Outcome(number, TrialState.FAIL, reason=reason, details=details)
    values = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
    try:
        finite = len(values) == objectives and all(map(math.isfinite, values))
    except TypeError:
        finite = False
    if not finite:
        reason = f"it returned {returned}, where {objectives} finite number(s) were to come"
        return Outcome(number, TrialState.FAIL, reason=reason)
    return Outcome(number, TrialState.COMPLETE, values=tuple(map(float, values)))


class Engine(ABC):
    """A place where trials run."""

    def __init__(self, task: Task, *, slots: int = 1) -> None:
        self.slots, self._task = slots, task
        self._waiting: list[tuple[int, Sequence[str]]] = []
        self.returns: list[Sequence[JobReturn]] = []  # the batches that a launcher has run

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Take on a trial."""
        self._waiting.append((number, overrides))

    @abstractmethod
    def wait(self) -> list[Outcome]:
        """Wait until at least one trial has ended."""

    def close(self) -> None:  # noqa: B027  (most have nothing to do)
        """Stop what is still under way, and leave no process behind."""


class InProcess(Engine):
    """One trial after the other, in this process."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._composer = task.composer()

    def wait(self) -> list[Outcome]:
        """Run it."""
        try:
            return [self._task.run(self._composer, *self._waiting.pop())]
        finally:
            hydra = self._task.config.hydra
            configure_log(hydra.hydra_logging, hydra.verbose)  # the job had its own


class Launched(Engine):
    """Batches through one of Hydra's launchers, which decides where they run."""

    def __init__(self, task: Task, launcher: Launcher, *, slots: int) -> None:
        super().__init__(task, slots=slots)
        self._launcher = launcher

    def wait(self) -> list[Outcome]:
        """Launch the batch and wait for all of it."""
        # A launcher numbers its jobs on from the first, so a gap in the numbers ends a batch.
        first = self._waiting[0][0]
        batch = [job for i, job in enumerate(self._waiting) if job[0] == first + i]
        self._waiting = self._waiting[len(batch) :]
        jobs = self._launcher.launch([overrides for _, overrides in batch], initial_job_idx=first)
        self.returns.append(jobs)
        for job in jobs:  # whose configurations Hydra has written with all that they hold
            assert job.hydra_cfg is not None
            for path in Path(job.hydra_cfg.hydra.runtime.output_dir).glob(".hydra/*.yaml"):
                path.write_text(masked(path.read_text()))
        return [
            judge(number, job, objectives=self._task.objectives)
            for (number, _), job in zip(batch, jobs, strict=True)
        ]
