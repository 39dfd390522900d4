"""What a search shows and keeps current: a live line, a line a trial, results on disk, records."""

import logging
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from optuna import Study
from optuna.trial import TrialState
from tqdm import tqdm

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
        self._best: list[int] = []  # the trials in best.yaml

    def begin(self, *, repaired: Sequence[int]) -> None:
        """Say where the search stands at its start."""
        standing = self._standing()
        log.info(
            f"Study {self._study.study_name}: {standing.done} of {self._ledger.total} trials are "
            f"done, results in {runs.shown(self._dir)}"
        )
        self._live = _Live(standing.done, self._ledger.total)
        if repaired:
            numbers = ", ".join(map(str, repaired))
            log.info(f"Left behind by a process that died, to be run again: trials {numbers}")
        if self._records:
            self._records.begin(standing)

    def trial(self, outcome: Outcome) -> None:
        """Show how a trial ended, and bring the results up to date."""
        self._ended += 1
        standing = self._standing()
        with tqdm.external_write_mode(sys.stderr):
            if outcome.details:
                log.warning(outcome.details)
            log.info(self._line(outcome, standing))
        self._live.show(standing.done, self._figures(standing))
        self._write(standing)
        if self._records:
            self._records.trial(outcome.number, standing)
        if self._artist and self._artist.refresh() and self._records:
            self._records.figures()

    def end(self, *, status: str) -> None:
        """Write the results and say what came out and what to type next."""
        self._live.close()
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
        parts += [self._figures(standing), f"{standing.done}/{self._ledger.total}"]
        each = (time.monotonic() - self._started) / self._ended
        left = each * (self._ledger.total - standing.done)
        parts.append(f"{tqdm.format_interval(left)} left")
        return "  ".join(filter(None, parts))

    def _figures(self, standing: Standing) -> str:
        """The best so far, and the trials that came to nothing."""
        best = [f"{t.value:.5g} (trial {t.number})" for t in standing.best if len(t.values) == 1]
        counts = [f"{n} {k}" for k, n in standing.counts.items() if n and k != "finished"]
        return "  ".join([*(f"best {shown}" for shown in best), *counts])

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
        best, self._best = self._best, [t.number for t in standing.best]
        if self._best not in ([], best):
            write_best(
                self._dir / BEST,
                standing.best[0],
                config_name=str(self._config.hydra.job.config_name),
                groups=list(self._config.hydra.runtime.choices),
            )


class _Live:
    """A line at the foot of a terminal: the trials done, the best so far, the time left."""

    def __init__(self, done: int, total: int) -> None:
        on_terminal: Any = {"disable": None, "dynamic_ncols": True, "leave": False}
        self._bar = tqdm(initial=done, total=total, unit="trial", **on_terminal)
        self._ended = threading.Event()
        if not self._bar.disable:
            threading.Thread(target=self._refresh, daemon=True).start()

    def show(self, done: int, figures: str) -> None:
        """Bring it up to date."""
        self._bar.n = done
        self._bar.set_postfix_str(figures)

    def close(self) -> None:
        """Remove it."""
        self._ended.set()
        self._bar.close()

    def _refresh(self) -> None:
        while not self._ended.wait(1):
            self._bar.refresh()
