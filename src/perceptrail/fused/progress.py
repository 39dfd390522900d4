"""How the epochs of a stack's members went: who is better than before, and who is done."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from perceptrail.callbacks import CURES, DivergenceError, Row
from perceptrail.fused.member import Member, Watched

Values = NDArray[np.float64]  # [members]
Flags = NDArray[np.bool_]  # [members]


class Progress:
    """The history of members that train together, each until it is done.

    It is kept in columns: a row for each of a thousand members takes longer than their epoch.
    """

    def __init__(self, members: Sequence[Member], *, steps: int) -> None:
        self._all, self._steps = list(members), steps
        self._present = np.arange(len(members))
        self._history: list[dict[str, Values]] = []  # for each epoch the columns, of all members
        self._best_epochs = np.zeros(len(members), dtype=np.int64)
        self._record = _Records([member.monitored for member in members])
        self._watch = _Records([member.watched for member in members])
        self._patience = np.array([member.patience for member in members])
        self._judged = any(member.pruning for member in members)

    def add(self, columns: Mapping[str, Values]) -> tuple[Flags, Flags]:
        """Add an epoch of those that are left: who is better than ever, and who is done."""
        epoch = len(self._history)
        self._history.append({name: np.full(len(self._all), math.nan) for name in columns})
        for name, values in columns.items():
            self._history[-1][name][self._present] = values
        finite = np.isfinite(columns["train/loss"]) & np.isfinite(columns["val/loss"])
        improved = self._record.add(columns) & finite
        self._best_epochs[self._present[improved]] = epoch
        self._watch.add(columns)
        done = ~finite | (self._watch.since >= self._patience)
        done |= epoch + 1 == self._all[0].epochs
        for k in np.flatnonzero(finite) if self._judged else ():
            member = self._all[self._present[k]]
            value = float(columns[member.monitored.metric][k])
            for judge in member.pruning:
                done[k] |= judge.consider(value, epoch)
        return improved, done

    def part(self, done: Flags) -> list[Member]:
        """Part with those that are done, which are given their history."""
        numbers = self._present[done]
        gone = [self._all[number] for number in numbers]
        for epoch, columns in enumerate(self._history, start=1):
            values = np.stack([column[numbers] for column in columns.values()], axis=1).tolist()
            for member, own in zip(gone, values, strict=True):
                row = dict(zip(columns, own, strict=True))
                member.outcome.rows.append({"epoch": epoch, "step": epoch * self._steps, **row})
        for member, best in zip(gone, self._best_epochs[numbers].tolist(), strict=True):
            member.outcome.best_epoch = best
            member.outcome.error = _divergence(member.outcome.rows[-1])
        self._present, self._patience = self._present[~done], self._patience[~done]
        self._record.keep(~done)
        self._watch.keep(~done)
        return gone


def _divergence(row: Row) -> DivergenceError | None:
    for name in ("train/loss", "val/loss"):
        if not math.isfinite(row[name]):
            return DivergenceError(
                f"{name} became {row[name]} in epoch {row['epoch']} "
                f"(learning rate {row['lr']:.3g}): {CURES}"
            )
    return None


class _Records:
    """Each member's best value of a metric, and for how many epochs there has been none better."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._metrics = list(dict.fromkeys(own.metric for own in watched))
        self._which = np.array([self._metrics.index(own.metric) for own in watched])
        self._signs = np.array([1 if own.mode == "min" else -1 for own in watched])
        self._deltas = np.array([abs(own.min_delta) for own in watched])
        self._best, self.since = np.full(len(watched), math.inf), np.zeros(len(watched), int)

    def add(self, columns: Mapping[str, Values]) -> Flags:
        """Whether this epoch is the best yet, of each."""
        table = np.stack([columns[name] for name in self._metrics])
        values = self._signs * table[self._which, np.arange(table.shape[1])]
        improved: Flags = values + self._deltas < self._best
        self._best = np.where(improved, values, self._best)
        self.since = np.where(improved, 0, self.since + 1)
        return improved

    def keep(self, members: Flags) -> None:
        """Go on with these members alone."""
        for name in ("_which", "_signs", "_deltas", "_best", "since"):
            setattr(self, name, getattr(self, name)[members])
