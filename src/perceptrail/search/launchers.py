"""Trials through one of Hydra's launchers, which decides where they run.

Most launchers take a batch and return when all of it has ended. Those that can be asked from
several threads at once take one trial at a time, and a free slot has the next one at once.
"""

import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from optuna.trial import TrialState

from perceptrail.passwords import masked
from perceptrail.search.engines import Engine, Outcome, Task, judge


class Launched(Engine):
    """A launcher that runs batches."""

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
        return self._judged([number for number, _ in batch], jobs)

    def _judged(self, numbers: Sequence[int], jobs: Sequence[JobReturn]) -> list[Outcome]:
        self.returns.append(jobs)
        for job in jobs:  # whose configurations Hydra has written with all that they hold
            assert job.hydra_cfg is not None
            for path in Path(job.hydra_cfg.hydra.runtime.output_dir).glob(".hydra/*.yaml"):
                path.write_text(masked(path.read_text()))
        return [
            judge(number, job, objectives=self._task.objectives)
            for number, job in zip(numbers, jobs, strict=True)
        ]


class Streamed(Launched):
    """A launcher that is asked for one trial at a time from a thread each: no slot waits."""

    def __init__(self, task: Task, launcher: Launcher, *, slots: int) -> None:
        super().__init__(task, launcher, slots=slots)
        self._ended: queue.SimpleQueue[tuple[int, Sequence[JobReturn] | Exception]]
        self._ended = queue.SimpleQueue()
        self._begin, self._stop = STREAMS[_package(launcher)]
        self._under_way = 0

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Launch a trial."""
        self._begin(self._launcher)
        self._under_way += 1
        threading.Thread(target=self._launch, args=(number, overrides), daemon=True).start()

    def wait(self) -> list[Outcome]:
        """Wait for the first to end. One whose launcher breaks down is lost, and runs again."""
        number, ended = self._ended.get()
        self._under_way -= 1
        if not isinstance(ended, Exception):
            return self._judged([number], ended)
        details = "".join(traceback.format_exception(ended))
        reason = f"its launcher failed: {type(ended).__name__}: {str(ended).splitlines()[0]}"
        return [Outcome(number, TrialState.FAIL, reason=reason, details=details, lost=True)]

    def close(self) -> None:
        """End what still runs."""
        if self._under_way:
            self._stop()

    def _launch(self, number: int, overrides: Sequence[str]) -> None:
        try:
            self._ended.put((number, self._launcher.launch([overrides], initial_job_idx=number)))
        except Exception as error:
            self._ended.put((number, error))


def can_stream(launcher: Any) -> bool:
    """Whether a launcher can be asked from several threads, and runs jobs in other processes."""
    joblib = OmegaConf.select(launcher.config, "hydra.launcher.n_jobs")  # of 1 it makes no process
    return _package(launcher) in STREAMS and joblib != 1


def _package(launcher: Any) -> str:
    return type(launcher).__module__.split(".")[1]


def _start_ray(launcher: Any) -> None:
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    launcher.ray_cfg.init.setdefault("object_store_memory", 78643200)  # as its launcher has it
    terminated = signal.getsignal(signal.SIGTERM)
    start_ray(launcher.ray_cfg.init)
    signal.signal(signal.SIGTERM, terminated)  # Ray sets its own


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def _stop_joblib() -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=False, kill_workers=True)


def _nothing(*_: Any) -> None:
    """Where there is nothing to do."""


# How to prepare for the first job, and how to end those that run.
STREAMS: dict[str, tuple[Callable[[Any], None], Callable[[], None]]] = {
    "hydra_joblib_launcher": (_nothing, _stop_joblib),
    "hydra_ray_launcher": (_start_ray, _stop_ray),
    "hydra_submitit_launcher": (_nothing, _nothing),
}
