"""The search itself: claim a trial, have it run, note how it ended, until there are enough."""

import json
import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna import Trial
from optuna.pruners import NopPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from perceptrail.errors import UserError, did_you_mean
from perceptrail.passwords import masked
from perceptrail.search.constraints import condition, imported, violation
from perceptrail.search.domains import Values, text
from perceptrail.search.engines import Engine, InProcess, Outcome, Task
from perceptrail.search.grammar import read_space
from perceptrail.search.launchers import Launched, Streamed, can_stream
from perceptrail.search.ledger import Ledger
from perceptrail.search.plots import Artist
from perceptrail.search.repeats import Repeated, Repeats
from perceptrail.search.report import Records, Report, store, trial_key
from perceptrail.search.results import objectives, reported
from perceptrail.search.roll import OVERRIDES
from perceptrail.search.running import REPEATED
from perceptrail.search.sampling import Exhaustive, Proposer
from perceptrail.search.settings import Settings, named_objectives
from perceptrail.search.stopping import Stopping
from perceptrail.search.storage import KEY, exclusive, is_shared, open_study
from perceptrail.search.warm_start import source, take_over
from perceptrail.search.workers import Workers

RECORDED = (
    "n_trials",
    "n_jobs",
    "seed",
    "retries",
    "constraints",
    "outcome_constraints",
    "repeats",
    "warm_start",
    "timeout",
    "patience",
)


KEYS = [field.name for field in fields(Settings)]
MORE_FAILURES = 100  # beyond n_trials, that end any search

log = logging.getLogger(__name__)

LIMITS = "outcome_constraints"  # the study attribute that keeps them


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
        if settings.study_name is None:
            settings = replace(settings, study_name=f"no-name-{uuid.uuid4()}")
        self._settings, self._config, self._launcher = settings, config, launcher
        self._dir = Path(str(config.hydra.sweep.dir)).absolute()
        self._has_heard = False  # whether it is known that trials report
        given = settings.storage or str(self._dir / "study.journal")
        self._address = json.dumps(given) if isinstance(given, Mapping) else str(given)
        if not is_shared(self._address):
            self._address = str(Path(self._address).absolute())
        _tell_jobs(config, study_name=str(settings.study_name), storage=self._address)
        directions = settings.directions(config)
        self._task = Task(context, function, config, objectives=len(directions))
        self._composer = self._task.composer()
        self._space = read_space(
            {**(settings.search_space or {}), **(settings.params or {})},
            arguments,
            loader=context.config_loader,
        )
        self._stopping = Stopping(settings)
        self._repeats = Repeats.of(settings.repeats) if settings.repeats is not None else None
        self._constraints = [condition(c) for c in settings.constraints]
        self._limits = {text: violation(text) for text in settings.outcome_constraints}
        self._check_keys()
        self._common = self._compose({})  # what all trials have in common
        name, begun = settings.custom_search_space, settings.warm_start
        self._customise = imported("hydra.sweeper.custom_search_space", name) if name else None
        sources = source(begun, self._space, directions, self._limits) if begun else []
        proposer = Proposer(self._space, settings, feasible=self._is_feasible, sources=sources)
        exhaustive = isinstance(proposer.base, Exhaustive)
        if settings.n_trials is None and not exhaustive:
            raise UserError("hydra.sweeper.n_trials=null: only grid and brute_force come to an end")
        starts = [] if exhaustive else list(self._starts(settings.enqueue))
        self._study = open_study(
            settings,
            address=self._address,
            directions=directions,
            objectives=named_objectives(self._common, len(directions)),
            sampler=proposer.base,
            distributions=self._space.distributions(),
        )
        if sources:
            with exclusive(self._address, f"warm start {settings.study_name}"):
                take_over(self._study, sources)
        self._note_terms()
        self._dir.mkdir(parents=True, exist_ok=True)
        (self._dir / "multirun.yaml").write_text(masked(OmegaConf.to_yaml(config)))
        self._ledger = Ledger(self._study, proposer, settings, starts=starts, address=self._address)

    def _note_terms(self) -> None:
        """Keep what trials are judged by, which is to stay so: others are no match for them."""
        repeats: Any = False
        if self._repeats is not None:
            repeats = [self._repeats.key, *(text(value) for value in self._repeats.values)]
        limits = sorted(self._limits)
        terms = {"repeats": (REPEATED, repeats), "outcome_constraints": (LIMITS, limits)}
        has_trials = bool(self._study.get_trials(deepcopy=False))
        for key, (name, told) in terms.items():
            begun = self._study.user_attrs.get(name, told)
            if has_trials and begun != told and begun is not True:  # as early studies have it
                was = ", ".join(begun) if begun else "none"
                raise UserError(
                    f"hydra.sweeper.{key}: study {self._study.study_name!r} was begun with {was}; "
                    "give the new search another hydra.sweeper.study_name"
                )
            self._study.set_user_attr(name, told)

    def run(self) -> list[Sequence[JobReturn]]:
        """Run trials until the study has as many as it shall have.

        Raises UserError when too many in a row have failed. Ctrl-C ends it with exit code 130.
        """
        HydraConfig.instance().set_config(self._config)  # for ${hydra:...}; each job sets its own
        draws = self._settings.figures
        self._records = self._recorded()
        report = Report(
            self._ledger,
            self._dir,
            self._common,
            records=self._records,
            artist=Artist(self._address, self._study, self._dir) if draws else None,
        )
        engine = self._engine()
        self._stopping.look(report.begin(repaired=self._ledger.repair()))
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
            report.end(status=status, why=self._stopping.reason)
        if status == "KILLED":
            sys.exit(130)
        return engine.returns

    def _loop(self, engine: Engine, report: Report) -> None:
        under_way = failures = 0
        bound, tally = self._settings.max_failures, _Tally(self._settings, self._ledger.total)
        while True:
            while under_way < engine.slots and not self._stopping.now():
                if not (trial := self._ledger.claim()):
                    break
                under_way += 1
                engine.submit(trial.number, self._overrides(trial))
            if not under_way:
                if not self._stopping.now() and self._ledger.repair():
                    continue
                return
            for outcome, broken in map(self._held, engine.wait()):
                under_way -= 1
                tally.add(outcome)
                if outcome.state == TrialState.FAIL:
                    failures += 1
                    self._ledger.fail(outcome.number, outcome.reason, lost=outcome.lost)
                else:
                    failures = 0
                    self._ledger.settle(
                        outcome.number, outcome.state, outcome.values, constraints=broken
                    )
                self._stopping.look(report.trial(outcome))
                self._stopping.tell(self._study, outcome.number)
                self._notice_silence(outcome)
                if self._ledger.stopped and not self._stopping.reason:
                    self._stopping.reason = "the sampler has nothing more to try"
            tally.judge(last=not under_way)
            if bound is not None and failures >= bound:  # several may have ended at once
                raise UserError(
                    f"{bound} trials in a row have failed, the last one because: "
                    f"{outcome.reason} (hydra.sweeper.max_failures={bound})"
                )

    def _notice_silence(self, outcome: Outcome) -> None:
        """Say once that a pruner can do nothing where trials report nothing."""
        if outcome.state != TrialState.COMPLETE or self._has_heard or self._repeats:
            return
        self._has_heard = True
        trial = self._study.get_trials(deepcopy=False)[outcome.number]
        if not isinstance(self._study.pruner, NopPruner) and not trial.intermediate_values:
            log.warning(
                f"hydra.sweeper.pruner: trial {outcome.number} has reported nothing while it ran, "
                "so there is nothing to prune by; perceptrail.search.trial(cfg).report does"
            )

    def _finite(self, outcome: Outcome) -> Outcome:
        """What a trial without a finite value is, by `hydra.sweeper.nan`."""
        if not outcome.nan or self._settings.nan == "fail":
            return outcome
        if self._settings.nan == "prune":
            return replace(outcome, state=TrialState.PRUNED)
        done = [t.values for t in self._ledger.roll.ended if t.state == TrialState.COMPLETE]
        if not done:
            return outcome
        worst = tuple(
            (max if direction == StudyDirection.MINIMIZE else min)(values)
            for direction, values in zip(
                self._study.directions, zip(*done, strict=True), strict=True
            )
        )
        return replace(outcome, state=TrialState.COMPLETE, values=worst)

    def _held(self, outcome: Outcome) -> tuple[Outcome, dict[str, float]]:
        """What an outcome is under the constraints on outcomes, and by how much it breaks each."""
        outcome = self._finite(outcome)
        if outcome.state != TrialState.COMPLETE or not self._limits:
            return outcome, {}
        trial = self._ledger.roll.look().all[outcome.number]
        named = zip(objectives(self._study), outcome.values or (), strict=True)
        known = reported(trial) | dict(named)
        try:
            return outcome, {text: excess(known) for text, excess in self._limits.items()}
        except UserError as error:
            return replace(outcome, state=TrialState.FAIL, values=None, reason=str(error)), {}

    def _engine(self) -> Engine:
        engine = self._engine_of_runs()
        if self._repeats is None:
            return engine
        together = isinstance(engine, Launched) and not isinstance(engine, Streamed)
        begin = self._records.open_trial if self._records else lambda _: None
        return Repeated(engine, self._repeats, self._ledger, together=together, begin=begin)

    def _engine_of_runs(self) -> Engine:
        slots = self._settings.n_jobs
        if self._launcher is not None:
            kind = Streamed if can_stream(self._launcher) else Launched
            return kind(self._task, self._launcher, slots=slots)
        if slots > 1:
            return Workers(self._task, slots=slots, logs=self._dir / "workers")
        return InProcess(self._task)

    def _overrides(self, trial: Trial) -> list[str]:
        """The overrides of a trial's job: its parameters, and where it belongs."""
        values = self._space.redraw(trial.params)
        overrides = self._space.overrides(values)
        overrides += [f"{key}={text(value)}" for key, value in self._customised(trial)]
        # Without those that hold a password: a preset of it would hold it too.
        trial.set_user_attr(OVERRIDES, [o for o in overrides if o == masked(o)])
        if "trial" in self._config:
            study = {"study": self._study.study_name, "storage": self._address}
            overrides.append(f"trial={text(study | {'number': trial.number})}")
        if store(self._common):
            key = self._study.user_attrs[KEY]
            parent = trial_key(key, trial.number) if self._repeats else key
            overrides.append(f"tracking.parent={parent}")
        return overrides

    def _customised(self, trial: Trial) -> Iterator[tuple[str, Any]]:
        """The keys that the custom search space has drawn beside the space, and their values."""
        if self._customise is None:
            return
        known = set(trial.params)
        try:
            self._customise(self._common, trial)
        except Exception as error:
            name = self._settings.custom_search_space
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"hydra.sweeper.custom_search_space={name}: {reason}") from error
        space = known & set(self._space.distributions())
        for key, value in trial.params.items():
            if key in space:
                continue
            if key.lstrip("+~") in self._space.fixed():
                raise UserError(
                    f"hydra.sweeper.custom_search_space: {key} has a fixed value as well; "
                    "leave one of the two out"
                )
            yield key, value

    def _recorded(self) -> Records | None:
        place = store(self._common)
        if place is None:
            return None
        with exclusive(self._address, f"records {self._study.study_name}"):
            records = Records(place, self._study, folder=self._dir, facts=self._facts())
            if is_shared(self._address) or self._launcher or self._settings.n_jobs > 1:
                records.wait()  # for the run to be there, or another process would make one too
        return records

    def _facts(self) -> dict[str, Any]:
        """What is searched and how, to be recorded."""
        entries, settings = self._space.entries.values(), self._settings
        facts = {f"space.{e.name}": e.source.removeprefix(f"{e.key}=") for e in entries}
        facts |= {
            f"sampler.{key}": value for key, value in settings.sampler.items() if value is not None
        }
        facts |= {
            f"pruner.{key}": value for key, value in settings.pruner.items() if value is not None
        }
        facts |= {name: getattr(settings, name) for name in RECORDED}
        directions = ", ".join(d.name.lower() for d in self._study.directions)
        return facts | {"storage": self._address, "directions": directions}

    def _check_keys(self) -> None:
        """Compose a few points: an unknown key or option is refused before the first trial."""
        if self._repeats:
            self._check_repeats(self._repeats)
        for name, values in self._space.witnesses():
            try:
                self._compose(values)
            except (HydraException, OmegaConfBaseException) as error:
                reason = str(error).splitlines()[0]
                value = text(values[name])
                raise UserError(f"search space: {name}={value}: {reason}") from error

    def _check_repeats(self, repeats: Repeats) -> None:
        if repeats.key in self._space.entries or repeats.key in self._space.fixed():
            raise UserError(f"hydra.sweeper.repeats.key={repeats.key}: that key is searched, too")
        for value in repeats.values:
            override = f"{repeats.key}={text(value)}"
            try:
                self._composer.compose([*self._space.overrides({}), override])
            except (HydraException, OmegaConfBaseException) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"hydra.sweeper.repeats: {override}: {reason}") from error

    def _compose(self, values: Values) -> DictConfig:
        return self._composer.compose(self._space.overrides(values))

    def _is_feasible(self, values: Values) -> bool:
        if not self._constraints:
            return True
        config = self._compose(values)
        return all(holds(config) for holds in self._constraints)

    def _starts(self, points: Sequence[Mapping[str, Any]]) -> Iterator[Values]:
        """The points to begin with: what each leaves out is as the configuration has it."""
        searched, defaults = {entry.name for entry, _ in self._space.order}, dict(self._defaults())
        for point in points:
            if unknown := [key for key in point if key not in searched]:
                raise UserError(
                    f"hydra.sweeper.enqueue: {unknown[0]} is not a key that is searched"
                )
            drawn = self._space.undraw(defaults | dict(point))
            if self._may_be_tried(drawn):
                yield drawn
            elif point:
                raise UserError(f"hydra.sweeper.enqueue: {text(point)} breaks a constraint")

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

    def _may_be_tried(self, drawn: Values) -> bool:
        try:
            values = self._space.redraw(drawn)
        except KeyError:
            return True  # as far as one can say before the rest is drawn
        return self._is_feasible(values)


class _Tally:
    """Counts failures of a search's trials: of each batch, and in all."""

    def __init__(self, settings: Settings, total: int) -> None:
        self._rate, self._size = settings.max_failure_rate, settings.n_jobs
        self._bound = total + MORE_FAILURES
        self._batch: list[Outcome] = []
        self._failed = 0

    def add(self, outcome: Outcome) -> None:
        """Count a trial that has ended."""
        self._batch.append(outcome)
        self._failed += outcome.state == TrialState.FAIL

    def judge(self, *, last: bool) -> None:
        """Raise UserError if there are too many; `last` if no further one is under way."""
        if self._failed >= self._bound:
            raise UserError(f"{self._failed} trials have failed, which is enough in any search")
        if self._rate is None or not self._batch:
            return
        if len(self._batch) < self._size and not last:
            return
        failed = [outcome for outcome in self._batch if outcome.state == TrialState.FAIL]
        if len(failed) / len(self._batch) > self._rate:
            raise UserError(
                f"{len(failed)} of {len(self._batch)} trials have failed, the last one because: "
                f"{failed[-1].reason} (hydra.sweeper.max_failure_rate={self._rate:g})"
            )
        self._batch.clear()


def _tell_jobs(config: DictConfig, **facts: str) -> None:
    """Have the configuration of every job, wherever it is composed, say what it belongs to."""
    with read_write(config.hydra):
        config.hydra.overrides.hydra += [f"hydra.sweeper.{k}={text(v)}" for k, v in facts.items()]


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
        for name in settings:
            if name not in KEYS:
                raise UserError(f"hydra.sweeper.{name}: no such key{did_you_mean(name, KEYS)}")
        return Search(Settings(**settings), **given).run()
    except UserError as error:
        raise SearchError(str(error)) from error
