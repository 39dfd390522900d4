"""What a search shows and keeps current: a live line, a line a trial, results on disk, records.

Its records are one run in MLflow, the parent of its trials' runs.
"""

import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from perceptrail import invocation, recorder, runs
from perceptrail.search.engines import Outcome
from perceptrail.search.ledger import Ledger
from perceptrail.search.plots import FOLDER, PAGE, Artist
from perceptrail.search.repeats import COUNT
from perceptrail.search.results import (
    BEST,
    PARETO,
    RESULTS,
    TRIALS,
    Course,
    Standing,
    chosen,
    objectives,
    params,
    write_best,
    write_front,
    write_results,
    write_trials,
)
from perceptrail.search.roll import LOST, REASON
from perceptrail.search.storage import KEY

log = logging.getLogger(__name__)

NOTE = "mlflow.note.content"
SPACING = 20  # of what takes one, the time between two


def store(config: DictConfig) -> tuple[str, str] | None:
    """The MLflow store and experiment that a configuration's runs are recorded in, if they are."""
    uri = OmegaConf.select(config, "tracking.uri")
    known = uri is not None and {"experiment", "parent"} <= set(config.tracking)
    return (uri, config.tracking.experiment) if known else None


def trial_key(study: str, number: int) -> str:
    """The key of the run of a trial that is the parent of others."""
    return f"{study}.{number}"


class Records:
    """Keeps a study's run in MLflow current, without waiting for it before the end."""

    def __init__(
        self, place: tuple[str, str], study: Study, *, folder: Path, facts: Mapping[str, Any]
    ) -> None:
        self._key, self._name, self._dir = study.user_attrs[KEY], study.study_name, folder
        self._line, self._objectives = recorder.connect(*place), objectives(study)
        command = invocation.command_line()
        tags = {"mlflow.source.name": Path(sys.argv[0]).name, "command": command}
        own = {"key": self._key, "name": self._name, "run_dir": str(folder), "owner": os.getpid()}
        self._line.post("open_study", **own, tags=tags)
        self._post("log_params", {k: str(v) for k, v in facts.items()} | {"command": command})

    def wait(self) -> None:
        """Wait until all is recorded so far, and there for other processes to find."""
        self._line.call("ping", self._key)

    def begin(self, trials: Iterable[FrozenTrial]) -> None:
        """Record what an earlier process had no time to record."""
        self._post("log_files", [str(self._dir / "multirun.yaml")], folder="config")
        self._post("mark_trials", _ended(trials))
        self._post("set_tags", {NOTE: self._about()})

    def open_trial(self, number: int) -> None:
        """Record a trial that is the parent of several runs, and wait until they find it."""
        self._post("open_trial", number, called=trial_key(self._key, number), owner=os.getpid())
        self.wait()

    def trial(self, trial: FrozenTrial, standing: Standing, files: Iterable[Path]) -> None:
        """Record how a trial has ended, where the study stands, and files that have changed."""
        for number, (outcome, reason) in _ended([trial]).items():
            self._post("mark_trial", number, outcome=outcome, reason=reason)
        if COUNT in trial.user_attrs:
            self._post_means(trial)
        counts = {f"trials/{name}": float(n) for name, n in standing.counts.items()}
        best, tags = {f"best/{name}": value for name, value in standing.extremes.items()}, {}
        if standing.best:
            first = standing.best[0]
            tags = {"best.trial": str(first.number), "best.params": params(first)}
            if (self._dir / PARETO).exists():
                tags["best.why"] = f"trial {first.number}{chosen(standing.best)}"
        self._post("log_metrics", counts | best, step=standing.total, tags=tags)
        self.files(files)

    def files(self, paths: Iterable[Path]) -> None:
        """Record files as they are."""
        if named := [str(path) for path in paths]:
            self._post("log_files", named)

    def figures(self) -> None:
        """Record the figures as they are."""
        files = sorted(str(path) for path in (self._dir / FOLDER).glob("[!0-9]*"))
        self._post("log_files", files, folder=FOLDER)

    def end(
        self, trials: Iterable[FrozenTrial], standing: Standing, *, status: str, note: str
    ) -> None:
        """Record the end, and wait until all is recorded. Raises UserError if something was not."""
        self.figures()
        self._post("mark_trials", _ended(trials))
        presets = sorted(str(path) for path in (self._dir / Path(PARETO).stem).glob("*.yaml"))
        self._post("log_files", presets, folder=Path(PARETO).stem)
        if standing.best:
            name = re.sub("[/:]", "-", self._name)  # characters that MLflow keeps for itself
            self._post("register_best", standing.best[0].number, name=name)
        self._post("set_tags", {NOTE: f"{self._about()}\n\n{note}"})
        self._post("close_study", status=status)
        self.wait()

    def _post_means(self, trial: FrozenTrial) -> None:
        """Record the mean of a trial's runs, which it keeps though it was given up, and its sd."""
        values = trial.values or [fmean(trial.intermediate_values.values())]
        means = {
            f"mean/{name}": value for name, value in zip(self._objectives, values, strict=True)
        }
        facts = {k: v for k, v in trial.user_attrs.items() if k.split()[0] in ("sd", COUNT)}
        key = trial_key(self._key, trial.number)
        self._line.post("in_study", key, "log_metrics", means | facts)

    def _about(self) -> str:
        return (
            f"Search **{self._name}**. The runs below it are its trials; the tag "
            "`perceptrail.outcome` says how each ended. Parameters: what is searched and how. "
            "Metrics: the best values so far and the numbers of trials. Artifacts: `trials.csv`, "
            f"`best.yaml` (a configuration to train again), `{FOLDER}/{PAGE}`."
        )

    def _post(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._line.post("in_study", self._key, method, *args, **kwargs)


def _ended(trials: Iterable[FrozenTrial]) -> dict[int, tuple[str, str]]:
    """The outcome and reason of each trial that has ended, by number."""
    found = {}
    for trial in trials:
        if trial.state.is_finished():
            failed = "KILLED" if trial.user_attrs.get(LOST) else "FAILED"
            outcome = failed if trial.state == TrialState.FAIL else trial.state.name
            found[trial.number] = (outcome, trial.user_attrs.get(REASON, ""))
    return found


class Report:
    """The running report of one search; `config` is what its trials have in common."""

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        config: DictConfig,
        *,
        records: Records | None,
        artist: Artist | None,
    ) -> None:
        self._ledger, self._dir, self._config = ledger, folder, config
        self._records, self._artist = records, artist
        self._started, self._ended = time.monotonic(), 0
        self._over = threading.Event()
        self._course = Course(ledger.study)
        self._best: list[int] = []  # the trials in best.yaml
        self._due = 0.0  # when to write the table of trials anew

    def begin(self, *, repaired: Sequence[int]) -> Standing:
        """Say where the search stands at its start."""
        standing = self._standing()
        log.info(
            f"Study {self._ledger.study.study_name}: {standing.done} of {self._ledger.total} "
            f"trials are done, results in {runs.shown(self._dir)}"
        )
        self._live: tqdm[Any] = tqdm(
            initial=standing.done,
            total=self._ledger.total,
            unit="trial",
            disable=None,  # on a terminal alone
            dynamic_ncols=True,
            leave=False,
        )
        if not self._live.disable:
            threading.Thread(target=self._tick, daemon=True).start()
        if repaired:
            numbers = ", ".join(map(str, repaired))
            log.info(f"Left behind by a process that died, to be run again: trials {numbers}")
        if self._records:
            self._records.begin(self._ledger.roll.ended)
        return standing

    def trial(self, outcome: Outcome) -> Standing:
        """Show how a trial ended, and bring the results up to date."""
        self._ended += 1
        standing = self._standing()
        with tqdm.external_write_mode(sys.stderr):
            if outcome.details:
                log.warning(outcome.details)
            log.info(self._line(outcome, standing))
        self._live.n = standing.done
        self._live.set_postfix_str(self._figures(standing))
        changed = self._write(standing)
        if self._records:
            self._records.trial(self._ledger.roll.all[outcome.number], standing, changed)
        if self._artist and self._artist.refresh() and self._records:
            self._records.figures()
        return standing

    def end(self, *, status: str, why: str) -> None:
        """Write the results and say what came out and what to type next."""
        self._over.set()
        self._live.close()
        standing = self._standing()
        self._due = 0.0
        changed = self._write(standing)
        said = [*self._summary(standing, status, why), *self._commands(standing)]
        for line in said:
            log.info(line)
        if self._artist and self._ended:
            self._artist.finish()
        if self._records:
            self._records.files(changed)
            ended, note = self._ledger.roll.ended, "\n\n".join(said)
            self._records.end(ended, standing, status=status, note=note)

    def _standing(self) -> Standing:
        return self._course.standing(self._ledger.roll.look().ended)

    def _tick(self) -> None:
        while not self._over.wait(1):
            self._live.refresh()

    def _line(self, outcome: Outcome, standing: Standing) -> str:
        trial = self._ledger.roll.all[outcome.number]
        shown = " ".join(f"{value:.5g}" for value in outcome.values or ())
        if shown and "sd" in trial.user_attrs:
            shown += f" ± {trial.user_attrs['sd']:.2g}"
        parts = [f"trial {outcome.number}: {shown or outcome.state.name.lower()}"]
        if outcome.state == TrialState.FAIL:
            parts.append(outcome.reason)
        parts += [self._figures(standing), f"{standing.done}/{self._ledger.total}"]
        each = (time.monotonic() - self._started) / self._ended
        left = tqdm.format_interval(each * (self._ledger.total - standing.done))
        parts.append(f"{left} left")
        return "  ".join(filter(None, parts))

    def _figures(self, standing: Standing) -> str:
        """The best so far, and the trials that came to nothing."""
        best = [f"{t.value:.5g} (trial {t.number})" for t in standing.best if len(t.values) == 1]
        counts = [f"{n} {k}" for k, n in standing.counts.items() if n and k != "finished"]
        return "  ".join([*(f"best {shown}" for shown in best), *counts])

    def _summary(self, standing: Standing, status: str, why: str) -> Iterator[str]:
        counts = ", ".join(f"{n} {name}" for name, n in standing.counts.items())
        words = {"FINISHED": "Done", "KILLED": "Interrupted", "FAILED": "Given up"}
        yield f"{words[status]}: {counts}"
        if why:
            yield f"Stopped: {why}"
        for trial in standing.best:
            values = ", ".join(f"{value:.6g}" for value in trial.values)
            yield f"best: {values} (trial {trial.number}: {params(trial)})"

    def _commands(self, standing: Standing) -> Iterator[str]:
        """What to type next."""
        if not standing.best:
            return
        folder = runs.shown(self._dir)
        again = ["-cd", str(folder), "-cn", Path(BEST).stem]
        if "seed" in self._config:
            again = ["-m", *again, "seed=0,1,2,3,4"]
        yield f"train the best again: {invocation.program()} {shlex.join(again)}"
        best = folder / str(standing.best[0].number)
        if (best / runs.METRICS).is_file():
            test = invocation.typed("evaluate")
            yield f"evaluate the best:    {test} {shlex.quote(f'run={best}')}"

    def _write(self, standing: Standing) -> list[Path]:
        """Bring the files up to date; those that have changed.

        The table of trials grows with them: it is written as often as takes a twentieth of the
        time, which for trainings is after each.
        """
        changed, started = [], time.monotonic()
        if started >= self._due:
            write_trials(self._dir / TRIALS, self._ledger.roll.trials)
            self._due = started + SPACING * (time.monotonic() - started)
            changed.append(self._dir / TRIALS)
        best = [trial.number for trial in standing.best]
        if best not in ([], self._best):
            first, *others = standing.best
            write_best(self._dir / BEST, first, self._config, why=chosen(standing.best))
            write_results(self._dir / RESULTS, standing.best)
            changed.append(self._dir / BEST)
            if others or (self._dir / PARETO).exists():
                write_front(self._dir, standing.best, self._config)
                changed.append(self._dir / PARETO)
        self._best = best  # last, for an interruption may come before
        return changed
