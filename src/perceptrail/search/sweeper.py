"""The search itself: claim a trial, have it run, note how it ended, until there are enough."""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna import Trial
from optuna.trial import TrialState

from perceptrail.errors import UserError
from perceptrail.passwords import masked
from perceptrail.search.constraints import Constraints, imported
from perceptrail.search.domains import Values, text
from perceptrail.search.engines import Engine, InProcess, Launched, Outcome, Task
from perceptrail.search.grammar import read_space
from perceptrail.search.ledger import Ledger
from perceptrail.search.plots import Artist
from perceptrail.search.records import Records, store
from perceptrail.search.report import Report
from perceptrail.search.results import OVERRIDES
from perceptrail.search.sampling import Exhaustive, Proposer
from perceptrail.search.settings import Settings, named_objectives
from perceptrail.search.space import Space
from perceptrail.search.storage import exclusive
from perceptrail.search.study import KEY, open_study
from perceptrail.search.workers import Workers

log = logging.getLogger(__name__)


class SearchError(UserError, CompactHydraException):
    """An error of the user's, which Hydra too reports as one message without a traceback."""


class Search:
    """One search, from its settings to its results."""

    def __init__(
        self,
        settings: Settings,
        *,
        context: HydraContext,
        function: TaskFunction,
        config: DictConfig,
        launcher: Launcher | None,
        arguments: Sequence[str],
    ) -> None:
        settings.check()
        self._settings, self._config, self._launcher = settings, config, launcher
        directions = settings.directions(config)
        self._task = Task(context, function, config, objectives=len(directions))
        self._composer = self._task.composer()
        self._space = read_space(settings.params, arguments, loader=context.config_loader)
        self._constraints = Constraints(settings.constraints)
        _check_keys(self._space, self)
        fixed = [e.override(None) for e in self._space.entries.values() if not e.domain]
        self._common = self._composer.compose(fixed)
        self._hook = imported("hydra.sweeper.hook", settings.hook) if settings.hook else None
        self._proposer = Proposer(
            self._space, settings.sampler, seed=settings.seed, feasible=self._is_feasible
        )
        exhaustive = isinstance(self._proposer.base, Exhaustive)
        if settings.n_trials is None and not exhaustive:
            raise UserError("hydra.sweeper.n_trials=null: only grid and brute_force come to an end")
        starts = [] if exhaustive else list(self._starts(settings.enqueue))
        self._dir = Path(str(config.hydra.sweep.dir)).absolute()
        self._address = settings.storage or str(self._dir / "study.journal")
        if "://" not in self._address:
            self._address = str(Path(self._address).absolute())
        self._study = open_study(
            settings.study_name,
            address=self._address,
            directions=directions,
            proposer=self._proposer,
            pruner=settings.pruner,
            objectives=named_objectives(self._common, len(directions)),
        )
        self._dir.mkdir(parents=True, exist_ok=True)
        (self._dir / "multirun.yaml").write_text(masked(OmegaConf.to_yaml(config)))
        self._ledger = Ledger(
            self._study,
            self._proposer,
            n_trials=settings.n_trials,
            starts=starts,
            retries=settings.retries,
        )
        self._records: Records | None = None

    def run(self) -> list[Sequence[JobReturn]]:
        """Run trials until the study has as many as it shall have.

        Raises UserError when too many in a row have failed. Ctrl-C ends it with exit code 130.
        """
        HydraConfig.instance().set_config(self._config)  # for ${hydra:...}; each job sets its own
        if place := store(self._common):
            self._records = self._recorded(place)
        engine = self._engine()
        self._under_way: set[int] = set()
        name, folder = self._study.study_name, self._dir
        artist = Artist(self._address, name, folder) if self._settings.figures else None
        report = Report(
            self._study, self._ledger, folder, self._common, records=self._records, artist=artist
        )
        report.begin(repaired=self._ledger.repair())
        status = "FAILED"
        try:
            with _terminated_as_interrupted():
                self._loop(engine, report)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            self._ledger.abandon("interrupted")
        except BaseException as error:
            self._ledger.abandon(f"the search ended: {error}")
            raise
        finally:
            engine.close()
            self._ledger.close()
            report.end(status=status)
        if status == "KILLED":
            sys.exit(130)
        return engine.returns if isinstance(engine, Launched) else []

    def _loop(self, engine: Engine, report: Report) -> None:
        failures = 0
        while True:
            while len(self._under_way) < engine.slots:
                trial = self._ledger.claim()
                if trial is None:
                    break
                self._under_way.add(trial.number)
                engine.submit(trial.number, self._overrides(trial))
            if not self._under_way:
                if self._ledger.repair():
                    continue
                return
            for outcome in engine.wait():
                self._settle(outcome)
                report.trial(outcome)
                failures = failures + 1 if outcome.state == TrialState.FAIL else 0
            if failures == self._settings.max_failures:
                raise UserError(
                    f"{failures} trials in a row have failed, the last one because: "
                    f"{outcome.reason} (hydra.sweeper.max_failures={failures})"
                )

    def _settle(self, outcome: Outcome) -> None:
        if outcome.state == TrialState.FAIL:
            self._ledger.fail(outcome.number, outcome.reason, lost=outcome.lost)
        else:
            self._ledger.settle(outcome.number, outcome.state, outcome.values)
        self._under_way.discard(outcome.number)

    def _engine(self) -> Engine:
        slots = self._settings.n_jobs
        if self._launcher is not None:
            return Launched(self._task, self._launcher, slots=slots)
        if slots > 1:
            return Workers(self._task, slots=slots, logs=self._dir / "workers")
        return InProcess(self._task)

    def _overrides(self, trial: Trial) -> list[str]:
        """The overrides of a trial's job: its parameters, and where it belongs."""
        values = self._space.redraw(trial.params)
        overrides = self._space.overrides(values)
        if self._hook:
            overrides += [
                f"{key}={text(value)}" for key, value in self._hook(trial, values).items()
            ]
        # Without those that hold a password: a preset of it would hold it too.
        trial.set_user_attr(OVERRIDES, [o for o in overrides if o == masked(o)])
        if "trial" in self._config:
            place = {"study": self._study.study_name, "storage": self._address}
            overrides = [*overrides, f"trial={text(place | {'number': trial.number})}"]
        if self._records:
            overrides = [*overrides, f"tracking.parent={self._records.key}"]
        return overrides

    def _recorded(self, place: tuple[str, str]) -> Records:
        directions = ", ".join(d.name.lower() for d in self._study.directions)
        where = {"storage": self._address, "directions": directions}
        with exclusive(self._address, f"records {self._study.study_name}"):
            records = Records(
                place,
                key=self._study.user_attrs[KEY],
                name=self._study.study_name,
                folder=self._dir,
                facts=self._settings.facts(self._space) | where,
            )
            if "://" in self._address or self._launcher or self._settings.n_jobs > 1:
                records.wait()  # for the run to be there, or another process would make one too
        return records

    def _is_feasible(self, values: Values) -> bool:
        if not self._constraints:
            return True
        return self._constraints.hold(self.compose(values))

    def compose(self, values: Values) -> DictConfig:
        """The configuration of a point."""
        return self._composer.compose(self._space.overrides(values))

    def _starts(self, points: Sequence[Mapping[str, Any]]) -> Iterator[Values]:
        """The points to begin with: what each leaves out is as the configuration has it."""
        defaults = dict(self._defaults())
        for point in points:
            for key in point:
                if key not in {entry.name for entry, _ in self._space.order}:
                    raise UserError(f"hydra.sweeper.enqueue: {key} is not a key that is searched")
            known = {k: v for k, v in defaults.items() if k not in point} | dict(point)
            drawn = self._space.undraw(known)
            if self._is_complete(drawn) and not self._is_feasible(self._space.redraw(drawn)):
                if point:
                    raise UserError(f"hydra.sweeper.enqueue: {text(point)} breaks a constraint")
                continue
            yield drawn

    def _defaults(self) -> Iterator[tuple[str, Any]]:
        config = self._common
        for entry, domain in self._space.order:
            value = config.hydra.runtime.choices.get(entry.name)
            if value is None:
                value = OmegaConf.select(config, entry.name)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            try:
                domain.undraw(entry.name, value)
            except UserError:
                continue  # a default outside the space: that key is drawn
            yield entry.name, value

    def _is_complete(self, drawn: Values) -> bool:
        try:
            self._space.redraw(drawn)
        except KeyError:
            return False
        return True


def _check_keys(space: Space, search: Search) -> None:
    """Compose a few points, so that an unknown key or option is refused before the first trial."""
    for name, values in space.witnesses():
        try:
            search.compose(values)
        except (HydraException, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            value = text(values[name])
            raise UserError(f"search space: {name}={value}: {reason}") from error


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which batch systems end a job, do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sweep(settings: Mapping[str, Any], **given: Any) -> list[Sequence[JobReturn]]:
    """Run a search; what the user can put right is raised as an error that Hydra shows plainly."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return Search(Settings(**settings), **given).run()
    except UserError as error:
        raise SearchError(str(error)) from error
