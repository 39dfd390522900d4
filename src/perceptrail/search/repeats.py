"""Points that are judged by several runs, such as one for each of five seeds.

A trial is then a run for each value of a key; its value is their mean. A point that is clearly
worse than the best one, seed by seed, is given up before its last run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from hydra.core.utils import JobReturn
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from perceptrail.errors import UserError, did_you_mean
from perceptrail.search.domains import text
from perceptrail.search.engines import Engine, Outcome
from perceptrail.search.ledger import Ledger
from perceptrail.search.results import objectives
from perceptrail.search.storage import build

NAME = "hydra.sweeper.repeats"
KEYS = ("key", "values", "p_value")
COUNT = "repeats"  # of the runs that a trial's value is the mean of


@dataclass(frozen=True)
class Repeats:
    """What the runs of a trial differ in, and the probability below which it is given up."""

    key: str
    values: tuple[Any, ...]
    p_value: float | None = 0.1

    @classmethod
    def of(cls, given: Any) -> "Repeats":
        """Raises UserError for what makes no sense."""
        if not isinstance(given, Mapping):
            raise UserError(f"{NAME}={given}: must be null, or {{key: seed, values: [0, 1, 2]}}")
        for name in given:
            if name not in KEYS:
                raise UserError(f"{NAME}.{name}: no such key{did_you_mean(str(name), KEYS)}")
        key, values, p = given.get("key"), given.get("values"), given.get("p_value", 0.1)
        if not isinstance(key, str) or not key:
            raise UserError(f"{NAME}.key={key}: must be a key of the configuration, such as seed")
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < 2:
            raise UserError(f"{NAME}.values={values}: must be a list of at least two")
        if len({text(value) for value in values}) < len(values):
            raise UserError(f"{NAME}.values={text(values)}: one of them is there twice")
        if p is not None and not (isinstance(p, int | float) and 0 < p < 1):
            raise UserError(f"{NAME}.p_value={p}: must be between 0 and 1, or null")
        return cls(key, tuple(values), p)

    def label(self, place: int) -> str:
        """What one of the runs is called in the trial's attributes."""
        return f"{self.key.lstrip('+')}={text(self.values[place])}"


@dataclass
class _Point:
    """A trial under way: what it runs, and what has come of it."""

    overrides: Sequence[str]
    missing: list[int]  # the places of the runs that have not begun
    values: dict[int, tuple[float, ...]] = field(default_factory=dict)
    under_way: int = 0
    broken: Outcome | None = None


class Repeated(Engine):
    """An engine of trials by one of runs; run i of trial n is its job n * (runs a trial) + i.

    The runs of a trial come one after the other, as long as it is worth while; where jobs go in
    batches (`together`), all at once.
    """

    def __init__(
        self,
        engine: Engine,
        repeats: Repeats,
        ledger: Ledger,
        *,
        together: bool,
        begin: Callable[[int], None],
    ) -> None:
        self.slots, self._engine = engine.slots, engine
        self._repeats, self._ledger = repeats, ledger
        self._together, self._begin = together, begin
        spec = {"_target_": "optuna.pruners.WilcoxonPruner", "p_threshold": repeats.p_value or 0}
        self._pruner: BasePruner = build(BasePruner, spec)
        self._points: dict[int, _Point] = {}
        self._ended: list[Outcome] = []

    @property
    def returns(self) -> list[Sequence[JobReturn]]:  # type: ignore[override]
        """The batches that a launcher has run."""
        return self._engine.returns

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Take on a trial; of one that was lost, only the runs that it had not finished."""
        self._begin(number)
        point = _Point(overrides, list(range(len(self._repeats.values))))
        self._points[number] = point
        for place, values in self._known(number).items():
            self._note(number, place, values)
        self._go_on(number)

    def wait(self) -> list[Outcome]:
        """Wait until a trial has ended."""
        while not self._ended:
            for outcome in self._engine.wait():
                number, place = divmod(outcome.number, len(self._repeats.values))
                point = self._points[number]
                point.under_way -= 1
                if outcome.state == TrialState.COMPLETE:
                    self._note(number, place, outcome.values or ())
                else:
                    why = f"{self._repeats.label(place)}: {outcome.reason}"
                    point.broken = replace(outcome, number=number, reason=why)
                self._go_on(number)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Stop what is still under way."""
        self._engine.close()

    def _known(self, number: int) -> dict[int, tuple[float, ...]]:
        """What the runs of the trials that this one repeats have come to."""
        roll = self._ledger.roll.look()
        places = {self._repeats.label(i): i for i in range(len(self._repeats.values))}
        return {
            places[label]: tuple(values) if isinstance(values, list) else (values,)
            for earlier in reversed(roll.lineage(number)[1:])
            for label, values in roll.all[earlier].user_attrs.items()
            if label in places
        }

    def _note(self, number: int, place: int, values: tuple[float, ...]) -> None:
        point = self._points[number]
        point.values[place] = values
        if place in point.missing:
            point.missing.remove(place)
        alone = values[0] if len(values) == 1 else None
        self._ledger.note(
            number,
            {self._repeats.label(place): list(values) if alone is None else alone},
            {} if alone is None else {place: alone},
        )

    def _go_on(self, number: int) -> None:
        """Begin the trial's next run, or end it."""
        point = self._points[number]
        going_on = not point.broken and not self._is_worse(number, point)
        while going_on and point.missing and (self._together or not point.under_way):
            place = point.missing.pop(0)
            own = f"{self._repeats.key}={text(self._repeats.values[place])}"
            folder = f"hydra.sweep.subdir={number}/{place}"
            job = number * len(self._repeats.values) + place
            self._engine.submit(job, [*point.overrides, own, folder])
            point.under_way += 1
        if not point.under_way:
            self._ended.append(self._outcome(number, self._points.pop(number)))

    def _is_worse(self, number: int, point: _Point) -> bool:
        study = self._ledger.study
        may = self._repeats.p_value is not None and len(study.directions) == 1
        if not (may and point.missing and point.values):
            return False
        return self._pruner.prune(study, self._ledger.roll.look().all[number])

    def _outcome(self, number: int, point: _Point) -> Outcome:
        if point.broken:
            return point.broken
        columns = list(zip(*point.values.values(), strict=True))
        names, count = objectives(self._ledger.study), len(point.values)
        sds = dict(zip(names, map(stdev, columns), strict=True)) if count > 1 else {}
        facts = {f"sd {name}" if len(names) > 1 else "sd": sd for name, sd in sds.items()}
        self._ledger.note(number, {**facts, COUNT: count})
        if point.missing:
            reason = f"worse than the best after {count} of {len(self._repeats.values)} runs"
            return Outcome(number, TrialState.PRUNED, reason=reason)
        means = tuple(map(fmean, columns))
        return Outcome(number, TrialState.COMPLETE, values=means)
