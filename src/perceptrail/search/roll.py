"""The trials of a study, counted as they come and end: what a trial costs does not grow with them.

A trial that has ended stays as it is, in any storage, so each is read once; only those under way
are looked at again.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

OWNER, RERUN, START, REASON, LOST, AGAIN, WITHDRAWN, COPIED, OVERRIDES = (
    "owner",  # the process that runs the trial
    "rerun_of",  # the trial whose parameters it repeats
    "start",  # which of the given starting points it is
    "reason",  # why it failed
    "lost",  # whether it was stopped, by no fault of its own
    "again",  # its parameters are to be run again
    "withdrawn",  # another process had already claimed the last place
    "copied",  # which trial of another study it was
    "overrides",  # which it ran with
)
BOOKKEEPING = (OWNER, RERUN, START, REASON, LOST, AGAIN, WITHDRAWN, COPIED, OVERRIDES)


class Roll:
    """The trials of a study, those of other processes with them; `look` brings it up to date.

    The trials that were withdrawn keep their numbers, and count for nothing.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.all: Sequence[FrozenTrial] = ()  # by number
        self.ended: list[FrozenTrial] = []  # as they were found to have ended
        self._open: list[int] = []
        self._proposals = [0]  # before each trial, and at the end
        self._counted = 0  # of the ended
        self._marked: set[tuple[str, Any]] = set()  # how those that ended were marked
        self._again: list[int] = []

    def look(self) -> "Roll":
        """Take note of what has happened in the study."""
        known, self.all = len(self.all), self._study.get_trials(deepcopy=False)
        for trial in islice(self.all, known, None):
            proposed = not {RERUN, COPIED} & trial.user_attrs.keys()
            self._proposals.append(self._proposals[-1] + proposed)
        still: list[int] = []
        for number in [*self._open, *range(known, len(self.all))]:
            trial = self.all[number]
            if not trial.state.is_finished():
                still.append(number)
            elif WITHDRAWN not in trial.user_attrs:
                self._note(trial)
        self._open = still
        self._again = [n for n in self._again if (RERUN, n) not in self._marked]
        return self

    def _note(self, trial: FrozenTrial) -> None:
        self.ended.append(trial)
        self._counted += _counts(trial)
        self._marked |= _marks(trial)
        if trial.user_attrs.get(AGAIN):
            self._again.append(trial.number)

    @property
    def open(self) -> list[FrozenTrial]:
        """The trials that have not ended."""
        under_way = (self.all[number] for number in self._open)
        return [t for t in under_way if WITHDRAWN not in t.user_attrs]

    @property
    def trials(self) -> list[FrozenTrial]:
        """All that count for something, by number."""
        return sorted([*self.ended, *self.open], key=lambda t: t.number)

    def spoken_for(self, *, before: int | None = None, waiting: bool = True) -> int:
        """How many of the places of a study are taken, by trials of lower number if one is given.

        Those that are queued in it can be left out.
        """
        count = self._counted
        if before is not None:  # it is one of the last
            later = islice(self.all, before, None)
            count -= sum(_counts(t) for t in later if t.state.is_finished())
        return count + sum(
            (before is None or t.number < before)
            and (waiting or t.state != TrialState.WAITING)
            and _counts(t)
            for t in self.open
        )

    def has(self, mark: str, value: Any, *, before: int | None = None) -> bool:
        """Whether a trial is so marked: one that has ended, or one under way of lower number."""
        return (mark, value) in self._marked or any(
            t.user_attrs.get(mark) == value and (before is None or t.number < before)
            for t in self.open
        )

    def to_repeat(self) -> FrozenTrial | None:
        """The first of the trials whose parameters are to be run again, and are not yet."""
        waiting = (n for n in sorted(self._again) if not self.has(RERUN, n))
        return next((self.all[n] for n in waiting), None)

    def place(self, number: int) -> int:
        """A trial's place in the order of proposals, which reruns do not change."""
        first = self.lineage(number)[-1] if number < len(self.all) else number
        return self._proposals[first]

    def lineage(self, number: int) -> list[int]:
        """The trial itself, the one that it repeats, the one which that repeats, and so on."""
        line = [number]
        while (before := self.all[line[-1]].user_attrs.get(RERUN)) is not None:
            line.append(before)
        return line


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial takes a place: it is done, or may yet be."""
    gone = {WITHDRAWN, COPIED} & trial.user_attrs.keys()
    return trial.state != TrialState.FAIL and not gone


def _marks(trial: FrozenTrial) -> set[tuple[str, Any]]:
    return {(mark, trial.user_attrs[mark]) for mark in (RERUN, START) if mark in trial.user_attrs}
