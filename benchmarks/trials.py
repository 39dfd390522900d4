"""What a trial of an empty function costs a search, as its trials become many."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import optuna
from benchmarks.contest import Lab
from benchmarks.search import pace
from benchmarks.table import Lines, Row, panels, summary
from matplotlib.figure import Figure
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from perceptrail import charts
from perceptrail.search.storage import open_storage

COST, LAST, OVER = "ms a trial", "ms of the last tenth", "ms over Optuna's"


def measure(lab: Lab, *, turn: int, quick: bool) -> list[Row]:
    """A row for each contender and number of trials, drawn at random, in a journal file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[Row] = []
    for count in (20, 50) if quick else (100, 1000, 5000):
        plain = _costs(_plain(Path(tempfile.mkdtemp(dir=lab.folder)), count))
        own = _costs(_search(lab, count))
        for contender, (cost, last) in {"Optuna alone": plain, "perceptrail": own}.items():
            row = {"contender": contender, "trials": f"{count:,}", COST: cost, LAST: last}
            rows.append(row | {OVER: cost - plain[0]})
    return rows


def show(rows: Sequence[Row]) -> Lines:
    """A line for each contender and number of trials."""
    return summary(rows, ("contender", "trials"), dict.fromkeys((COST, LAST, OVER), ".1f"))


def draw(rows: Sequence[Row]) -> Figure:
    """A dot for each round."""
    costs = panels(rows, COST, of="contender", by="trials")
    return charts.dots(costs, title="A search of an empty function", x=COST)


def _costs(trials: list[FrozenTrial]) -> tuple[float, float]:
    last = trials[-max(3, len(trials) // 10) :]
    return 1000 * pace(trials), 1000 * pace(last)


def _plain(folder: Path, count: int) -> list[FrozenTrial]:
    storage: BaseStorage = JournalStorage(JournalFileBackend(str(folder / "journal")))
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=count)
    return study.trials


def _search(lab: Lab, count: int) -> list[FrozenTrial]:
    given = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.figures=false"]
    given += [f"hydra.sweeper.n_trials={count}", "hydra.sweeper.study_name=s", "+x=interval(0,1)"]
    jobs = lab.search("benchmarks/empty.py", *given)
    return open_storage(f"{jobs.folder}/study.journal").get_all_trials(0)
