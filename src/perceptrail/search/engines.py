"""Where trials run: in this process. (Worker processes: workers.py; launchers: launchers.py.)

An engine takes trials by `submit` while it has free `slots`, and `wait` returns those that ended.
"""

import gc
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna import TrialPruned
from optuna.trial import TrialState

from perceptrail.errors import UserError
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
    nan: bool = False  # failed because of a value that is not finite


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
        numbers = [math.isfinite(value) for value in values]
    except TypeError:
        numbers = []
    if len(numbers) != objectives or not all(numbers):
        reason = f"it returned {returned}, where {objectives} finite number(s) were to come"
        nan = len(numbers) == objectives
        return Outcome(number, TrialState.FAIL, reason=reason, nan=nan)
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
