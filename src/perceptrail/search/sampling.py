"""What is tried next: any Optuna sampler, kept to points that the constraints allow.

Each trial gets a sampler of its own, seeded by the study's seed and the trial's place, so a search
that was interrupted goes on as it would have, and parallel processes never draw alike.
"""

import copy
import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from perceptrail.errors import UserError
from perceptrail.search.domains import Values
from perceptrail.search.settings import Settings
from perceptrail.search.space import Space
from perceptrail.search.storage import build

ATTEMPTS = 1000
OPTUNAS = ("optuna.", "perceptrail.search.")  # samplers that find all they know in the storage
FIXED = "fixed_params"  # where Optuna keeps the values that an enqueued trial shall have


class Exhausted(Exception):  # noqa: N818  (an outcome, not an error)
    """Every point of a finite space has been tried."""


class Exhaustive(RandomSampler):
    """Every point of a finite space, once: in the order of the space, or shuffled.

    Unlike Optuna's own grid, it takes its points from the space, conditions included, and which
    trial gets which point depends on nothing but its place: no point is tried twice in parallel.
    """

    def __init__(self, *, shuffle: bool = False, seed: int | None = None) -> None:
        super().__init__(seed)
        self._shuffle, self._seed = shuffle, seed

    def arrange(self, points: list[Values]) -> None:
        """Bring the points into the order in which they are tried."""
        if self._shuffle:
            random.Random(self._seed).shuffle(points)


class Proposer:
    """Makes each trial's sampler: `feasible` tells whether a point may be tried at all."""

    def __init__(
        self,
        space: Space,
        settings: Settings,
        *,
        feasible: Callable[[Values], bool],
        sources: Sequence[FrozenTrial] = (),
    ) -> None:
        self.space, self.feasible = space, feasible
        own = settings.sampler.get("seed")
        self._seed = settings.seed if own is None else own
        self._spec = {key: value for key, value in settings.sampler.items() if key != "seed"}
        self._known: dict[str, Any] = {}  # CMA-ES, which asks for them, takes the best tenth
        if sum(t.state == TrialState.COMPLETE for t in sources) >= 10:
            self._known["source_trials"] = list(sources)
        if not str(self._spec.get("_target_")).startswith("optuna."):
            self._known["search_space"] = space.distributions()
        self.base = build(BaseSampler, self._spec, seed=self._seed, **self._known)
        self.points: list[Values] | None = None
        if isinstance(self.base, Exhaustive):
            self.points = [point for point in space.points() if feasible(space.redraw(point))]
            self.base.arrange(self.points)

    def sampler(self, place: int) -> BaseSampler:
        """The sampler of the trial at a place, counted from 0.

        Others than Optuna's may learn from trial to trial in memory: of them there is one.
        """
        if not type(self.base).__module__.startswith(OPTUNAS):
            return _Proposal(self.base, place, self)
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        if isinstance(self.base, Exhaustive | QMCSampler):  # one sequence for the whole study
            given = {"seed": self._seed, "independent_sampler": RandomSampler(seed)}
        else:
            given = {"seed": seed}
        return _Proposal(build(BaseSampler, self._spec, **given, **self._known), place, self)


class _Proposal(BaseSampler):
    """One trial's sampler: draws all parameters at once, again until they are feasible."""

    def __init__(self, inner: BaseSampler, place: int, proposer: Proposer) -> None:
        self._inner, self._place, self._proposer = inner, place, proposer

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._proposer.space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Values:
        points = self._proposer.points
        if points is not None:
            if self._place >= len(points):
                raise Exhausted
            return points[self._place]
        if isinstance(self._inner, CmaEsSampler):  # it mixes the number into its seed
            trial = copy.copy(trial)
            trial.number = self._place
        for _ in range(ATTEMPTS):
            drawn = self._draw(study, trial)
            if self._proposer.feasible(self._proposer.space.redraw(drawn)):
                return drawn
        raise UserError(
            f"hydra.sweeper.constraints: {ATTEMPTS} points in a row break them; "
            "loosen the constraints or narrow the space"
        )

    def _draw(self, study: Study, trial: FrozenTrial) -> Values:
        inner_space = self._inner.infer_relative_search_space(study, trial)
        known = self._inner.sample_relative(study, trial, inner_space)
        known |= trial.system_attrs.get(FIXED, {})
        drawn: Values = {}
        trial = copy.copy(trial)

        def suggest(name: str, distribution: BaseDistribution) -> Any:
            if name not in known:
                trial.params = dict(drawn)  # a tree of choices goes by what it has drawn so far
                known[name] = self.sample_independent(study, trial, name, distribution)
            drawn[name] = _exact(distribution, known[name])
            return drawn[name]

        self._proposer.space.draw(suggest)
        return drawn

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter outside the space, too, which a custom search space asks for."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)


def _exact(distribution: BaseDistribution, value: Any) -> Any:
    """A value as it is written: multiples of a step in decimal, 3.5 and not 3.4999999999999996."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is None:
        return value
    low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
    return float(low + round((value - distribution.low) / distribution.step) * step)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw one parameter of a trial, and store it."""
    return trial._suggest(name, distribution)  # which has a public name for each kind of its own
