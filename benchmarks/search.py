"""What the benchmarks of searches share."""

from benchmarks.contest import Jobs, Lab
from optuna.trial import FrozenTrial

from perceptrail.search.storage import open_storage


def search(lab: Lab, *overrides: str) -> tuple[list[FrozenTrial], Jobs]:
    """A search's trials, and its jobs."""
    given = ("hydra.sweeper.study_name=s", "hydra.sweeper.figures=false")
    jobs = lab.multirun(*overrides, *given)
    return open_storage(f"{jobs.folder}/study.journal").get_all_trials(0), jobs


def pace(trials: list[FrozenTrial], workers: int = 1) -> float:
    """Seconds a trial, from when each worker has ended its first, which has the imports, on."""
    ends = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete)
    return (ends[-1] - ends[workers - 1]).total_seconds() / (len(ends) - workers)
