"""What a search shows and keeps current: a line for each trial, results on disk, records."""

import logging
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig
from optuna import Study
from optuna.trial import TrialState

from perceptrail import runs
from perceptrail.search.engines import Outcome
from perceptrail.search.ledger import Ledger
from perceptrail.search.plots import Artist
from perceptrail.search.records import Records
from perceptrail.search.results import BEST, TRIALS, Standing, write_best, write_trials

log = logging.getLogger(__name__)


class Report:
    """The running report of one search; `config` is what its trials have in common."""

    def __init__(
        self,
        study: Study,
        ledger: Ledger,
        folder: Path,
        config: DictConfig,
        *,
        records: Records | None,
        artist: Artist | None,
    ) -> None:
        self._study, self._ledger, self._dir, self._config = study, ledger, folder, config
        self._records, self._artist = records, artist
        self._started, self._ended = time.monotonic(), 0

    def begin(self, *, repaired: Sequence[int]) -> None:
        """Say where the search stands at its start."""
        standing = self._standing()
        log.info(
            f"Study {self._study.study_name}: {standing.done} of {self._ledger.total} trials are "
            f"done, results in {runs.shown(self._dir)}"
        )
        if repaired:
            numbers = ", ".join(map(str, repaired))
            log.info(f"Left behind by a process that died, to be run again: trials {numbers}")
        if self._records:
            self._records.begin(standing)

    def trial(self, outcome: Outcome) -> None:
        """Show how a trial ended, and bring the results up to date."""
        if outcome.details:
            log.warning(outcome.details)
        self._ended += 1
        standing = self._standing()
        log.info(self._line(outcome, standing))
        self._write(standing)
        if self._records:
            self._records.trial(outcome.number, standing)
        if self._artist and self._artist.refresh() and self._records:
            self._records.figures()

    def end(self, *, status: str) -> None:
        """Write the results and say what came out and what to type next."""
        standing = self._standing()
        self._write(standing)
        said = [*self._summary(standing, status), *self._commands(standing)]
        for line in said:
            log.info(line)
        if self._artist and self._ended:
            self._artist.finish()
        if self._records:
            self._records.end(standing, status=status, note="\n\n".join(said))

    def _standing(self) -> Standing:
        return Standing.of(self._study, self._ledger.trials())

    def _line(self, outcome: Outcome, standing: Standing) -> str:
        shown = " ".join(f"{value:.5g}" for value in outcome.values or ())
        parts = [f"trial {outcome.number}: {shown or outcome.state.name.lower()}"]
        if outcome.state == TrialState.FAIL:
            parts.append(outcome.reason)
        if len(standing.extremes) == 1:
            best = standing.best[0]
            parts.append(f"best {best.value:.5g} (trial {best.number})")
        parts.append(f"{standing.done}/{self._ledger.total}")
        counts = standing.counts.items()
        parts += [f"{n} {name}" for name, n in counts if n and name != "finished"]
        each = (time.monotonic() - self._started) / self._ended
        left = each * (self._ledger.total - standing.done)
        parts.append(f"{_duration(left)} left")
        return "  ".join(parts)

    def _summary(self, standing: Standing, status: str) -> Iterator[str]:
        counts = ", ".join(f"{n} {name}" for name, n in standing.counts.items())
        words = {"FINISHED": "Done", "KILLED": "Interrupted", "FAILED": "Given up"}
        yield f"{words[status]}: {counts}"
        for trial in standing.best:
            values = ", ".join(f"{value:.6g}" for value in trial.values)
            shown = " ".join(f"{name}={value}" for name, value in trial.params.items())
            yield f"best: {values} (trial {trial.number}: {shown})"

    def _commands(self, standing: Standing) -> Iterator[str]:
        """What to type next."""
        if not standing.best:
            return
        app, folder = runs.shown(Path(sys.argv[0])), runs.shown(self._dir)
        again = ["-cd", str(folder), "-cn", Path(BEST).stem]
        if "seed" in self._config:
            again = ["-m", *again, "seed=0,1,2,3,4"]
        yield f"train the best again: python {app} {shlex.join(again)}"
        best = folder / str(standing.best[0].number)
        if (best / runs.METRICS).is_file():
            test = app.with_name("evaluate.py")
            yield f"evaluate the best:    python {test} {shlex.quote(f'run={best}')}"

    def _write(self, standing: Standing) -> None:
        write_trials(self._dir / TRIALS, standing.trials)
        if standing.best:
            write_best(
                self._dir / BEST,
                standing.best[0],
                config_name=str(self._config.hydra.job.config_name),
                groups=list(self._config.hydra.runtime.choices),
            )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
