"""Who runs which trial: claims that hold between processes, and what the dead have left behind.

All of it is read from the storage each time, so any process can be killed at any moment and any
other goes on. Of several processes that claim at once, the lower trial number wins and the others
withdraw. `n_trials` counts the trials that are COMPLETE, PRUNED or still under way.
"""

import copy
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import TrialState, create_trial

from perceptrail.processes import identity, is_alive
from perceptrail.search.domains import Values
from perceptrail.search.roll import AGAIN, LOST, OWNER, REASON, RERUN, START, WITHDRAWN, Roll
from perceptrail.search.sampling import FIXED, Exhausted, Proposer, suggest
from perceptrail.search.settings import Settings
from perceptrail.search.storage import exclusive

ALIVE = "alive:"
BEAT_S, DEAD_AFTER_S = 15, 90


class Ledger:
    """The trials of a study, as one of the processes that run them."""

    def __init__(
        self,
        study: Study,
        proposer: Proposer,
        settings: Settings,
        *,
        starts: Sequence[Values],
        address: str,
    ) -> None:
        self.study, self._proposer, self._address = study, proposer, address
        self.stopped = False  # by the sampler
        self._settings, self._starts = settings, starts
        self.roll = Roll(study)
        self._owner = f"{socket.gethostname()}:{identity(os.getpid())}"
        self._stop = threading.Event()
        self._beat()
        threading.Thread(target=self._beat_on, daemon=True).start()

    def close(self) -> None:
        """Show no further sign of life."""
        self._stop.set()

    @property
    def total(self) -> int:
        """How many trials the study shall have."""
        bounds = (self._settings.n_trials, len(self._proposer.points or ()))
        return min(n for n in bounds if n)

    def claim(self) -> Trial | None:
        """The next trial for this process, its parameters drawn; None when there is none left."""
        return None if self.stopped else self._claim_waiting() or self._claim_new()

    def _claim_new(self) -> Trial | None:
        if self.roll.look().spoken_for() >= self.total:
            return None
        attrs, fixed = self._next()
        if not attrs and self._is_exhausted():
            return None
        storage, study_id = self.study._storage, self.study._study_id
        # Not Study.ask, which would first have to queue the trial: the owner has to be there from
        # the first moment, or a process that starts now would take it for left behind.
        now = create_trial(
            state=TrialState.RUNNING,
            user_attrs=attrs | {OWNER: self._owner},
            system_attrs={FIXED: fixed} if fixed else {},
        )
        trial_id = storage.create_new_trial(study_id, template_trial=now)
        number = storage.get_trial(trial_id).number
        if not self._wins(number, attrs):
            self.settle(number, TrialState.FAIL, attrs={WITHDRAWN: True})
            return self._claim_new()
        try:
            return self._drawn(number, trial_id)
        except Exhausted:
            self.settle(number, TrialState.FAIL, attrs={WITHDRAWN: True})
            return None
        except BaseException as error:
            self.fail(number, f"{type(error).__name__} while its parameters were drawn", lost=True)
            raise

    def _claim_waiting(self) -> Trial | None:
        """The first trial that somebody has queued in the study, if there is room for it."""
        while waiting := [t for t in self.roll.look().open if t.state == TrialState.WAITING]:
            first, storage = waiting[0], self.study._storage
            with exclusive(self._address, f"queue {self.study.study_name}"):
                if self.roll.look().spoken_for(waiting=False) >= self.total:
                    return None
                if storage.get_trial(first._trial_id).state != TrialState.WAITING:
                    continue  # another process was faster
                storage.set_trial_user_attr(first._trial_id, OWNER, self._owner)
                storage.set_trial_state_values(first._trial_id, TrialState.RUNNING)
            try:
                return self._drawn(first.number, first._trial_id)
            except (ValueError, KeyError) as error:  # a value that the space has not got
                self.fail(first.number, f"its queued parameters do not go: {error}")
            except BaseException as error:
                reason = f"{type(error).__name__} while its parameters were drawn"
                self.fail(first.number, reason, lost=True)
                raise
        return None

    def _drawn(self, number: int, trial_id: int) -> Trial:
        """A trial of this process, once its parameters are drawn."""
        study = copy.copy(self.study)
        study.sampler = self._proposer.sampler(self.roll.look().place(number))
        trial = Trial(study, trial_id)
        with stoppable(study):
            self._proposer.space.draw(partial(suggest, trial))
        self.stopped = self.stopped or study._stop_flag
        return trial

    def settle(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        attrs: Mapping[str, Any] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Write how a trial has ended, unless somebody else did."""
        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        try:
            for key, value in (attrs or {}).items():
                storage.set_trial_user_attr(trial_id, key, value)
            for key, excess in (constraints or {}).items():  # as Trial.set_constraint does
                storage.set_trial_system_attr(trial_id, f"{_CONSTRAINTS_KEY}:{key}", excess)
            with stoppable(self.study):
                self.study.tell(number, values, state, skip_if_finished=True)
            self.stopped = self.stopped or self.study._stop_flag
        except UpdateFinishedTrialError:
            pass

    def note(
        self, number: int, attrs: Mapping[str, Any], steps: Mapping[int, float] | None = None
    ) -> None:
        """Keep what is known of a trial under way, and its values after steps."""
        storage = self.study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        for key, value in attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        for step, value in (steps or {}).items():
            storage.set_trial_intermediate_value(trial_id, step, value)

    def fail(self, number: int, reason: str, *, lost: bool = False) -> None:
        """End a trial as FAILED; the parameters of a lost one, or of a retry, will run again."""
        again = lost or len(self.roll.look().lineage(number)) <= self._settings.retries
        attrs = {REASON: reason, AGAIN: again, LOST: lost}
        self.settle(number, TrialState.FAIL, attrs=attrs)

    def repair(self) -> list[int]:
        """End the trials of dead processes as FAILED, to be run again; their numbers."""
        return self._lose("the process that ran it died", lambda owner: not self._is_alive(owner))

    def abandon(self, reason: str) -> list[int]:
        """End this process's own trials as FAILED, to be run again; their numbers."""
        return self._lose(reason, lambda owner: owner == self._owner)

    def _lose(self, reason: str, is_lost: Callable[[str], bool]) -> list[int]:
        running = [t for t in self.roll.look().open if t.state == TrialState.RUNNING]
        lost = [t.number for t in running if is_lost(str(t.user_attrs.get(OWNER)))]
        for number in lost:
            self.fail(number, reason, lost=True)
        return lost

    def _next(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the next trial is marked with, and the parameters that it has to have."""
        if (trial := self.roll.to_repeat()) is not None:
            return {RERUN: trial.number}, trial.system_attrs.get(FIXED, {}) | trial.params
        for i, point in enumerate(self._starts):
            if not self.roll.has(START, i):
                return {START: i}, dict(point)
        return {}, {}

    def _is_exhausted(self) -> bool:
        points, number = self._proposer.points, len(self.roll.all)
        return points is not None and self.roll.place(number) >= len(points)

    def _wins(self, number: int, attrs: Mapping[str, Any]) -> bool:
        roll = self.roll.look()
        taken = any(roll.has(mark, value, before=number) for mark, value in attrs.items())
        return not taken and roll.spoken_for(before=number) < self.total

    def _beat(self) -> None:
        self.study.set_user_attr(ALIVE + self._owner, time.time())

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beat()

    def _is_alive(self, owner: str) -> bool:
        host, _, process = owner.partition(":")
        if host == socket.gethostname():
            return is_alive(process)
        beat: float = self.study.user_attrs.get(ALIVE + owner, 0.0)
        return time.time() - beat < DEAD_AFTER_S


@contextmanager
def stoppable(study: Study) -> Iterator[None]:
    """Let `Study.stop` be called, which Optuna keeps for its own loop."""
    study._stop_flag, study._thread_local.in_optimize_loop = False, True
    try:
        yield
    finally:
        study._thread_local.in_optimize_loop = False
