"""What a search leaves to read: a table of its trials, and its best configuration as a preset."""

import csv
import os
from bisect import bisect, insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna import Study
from optuna.study import StudyDirection
from optuna.study._constrained_optimization import _get_feasible_trials
from optuna.study._multi_objective import _get_pareto_front_trials_by_trials
from optuna.trial import FrozenTrial, TrialState

from perceptrail.search.domains import text
from perceptrail.search.fronts import knee_first
from perceptrail.search.roll import BOOKKEEPING, COPIED, OVERRIDES

TRIALS, BEST, PARETO = "trials.csv", "best.yaml", "pareto.csv"
RESULTS = "optimization_results.yaml"  # what hydra-optuna-sweeper leaves
KINDS = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
SEARCHES = "hparams_search"  # the config group of searches, which only say how to search


@dataclass(frozen=True)
class Standing:
    """Where a study stands: the best of its trials, and how many there are of each kind."""

    # The first of equals; of several objectives, all undominated, the knee before the others.
    best: Sequence[FrozenTrial]
    extremes: Mapping[str, float]  # the best value of each objective, by its name
    counts: Mapping[str, int]  # how many have finished, were pruned, have failed
    total: int  # those copied from elsewhere too
    since: int  # how many have finished or were pruned since the last of the best

    @property
    def done(self) -> int:
        """How many count towards the total."""
        return self.counts["finished"] + self.counts["pruned"]


class Course:
    """Follows where a study stands, from trial to trial."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._front: list[FrozenTrial] = []
        self._extremes: dict[str, float] = {}
        self._counts = dict.fromkeys(KINDS, 0)
        self._done: list[int] = []  # the numbers of those that have finished or were pruned
        self._seen = 0

    def standing(self, ended: Sequence[FrozenTrial]) -> Standing:
        """The standing after these trials, to which only more can have come since last time."""
        new, self._seen = ended[self._seen :], len(ended)
        for trial in new:
            kind = next(name for name, state in KINDS.items() if state == trial.state)
            self._counts[kind] += COPIED not in trial.user_attrs
            if kind != "failed":
                insort(self._done, trial.number)
        self._better(_get_feasible_trials([t for t in new if t.state == TrialState.COMPLETE]))
        front, directions = self._front, self._study.directions
        best = knee_first(front, directions) if len(directions) > 1 else front[:1]
        last = max((t.number for t in best), default=-1)
        since = len(self._done) - bisect(self._done, last)
        return Standing(best, dict(self._extremes), dict(self._counts), self._seen, since)

    def _better(self, done: Sequence[FrozenTrial]) -> None:
        if not done:
            return
        directions, bests = self._study.directions, self._extremes
        columns = zip(*(t.values for t in done), strict=True)
        for name, direction, column in zip(
            objectives(self._study), directions, columns, strict=False
        ):
            best = min if direction == StudyDirection.MINIMIZE else max
            bests[name] = best(column) if name not in bests else best(*column, bests[name])
        rivals = sorted([*self._front, *done], key=lambda t: t.number)
        front = _get_pareto_front_trials_by_trials(rivals, directions)
        self._front = front if len(directions) > 1 else front[:1]


def objectives(study: Study) -> list[str]:
    """The names of what is optimized."""
    return study.metric_names or _columns(len(study.directions))


def _columns(count: int) -> list[str]:
    return ["value"] if count == 1 else [f"value_{i}" for i in range(count)]


def params(trial: FrozenTrial) -> str:
    """A trial's parameters in one line."""
    return " ".join(f"{name}={value}" for name, value in trial.params.items())


def write_trials(path: Path, trials: Sequence[FrozenTrial]) -> None:
    """Write one line a trial.

    The columns: number, state, values, seconds, reason of a failure, parameters, then what the
    trials have reported besides, and whether they kept the constraints on that.
    """
    values = _columns(max((len(t.values) for t in trials if t.values), default=1))
    names = list(dict.fromkeys(name for t in trials for name in t.params))
    facts = [reported(t) for t in trials]
    others = [name for name in dict.fromkeys(n for own in facts for n in own) if name not in names]
    constrained = any(t.constraints for t in trials)
    with _replacing(path) as file:
        table = csv.writer(file)
        heads = [*names, *others, *(["feasible"] if constrained else [])]
        table.writerow(["number", "state", *values, "seconds", "reason", *heads])
        for t, fact in zip(trials, facts, strict=True):
            seconds = round(t.duration.total_seconds(), 3) if t.duration else ""
            own = t.values or [""] * len(values)
            reason = t.user_attrs.get("reason", "")
            drawn = [t.params.get(name, "") for name in names]
            drawn += [fact.get(name, "") for name in others]
            if constrained:
                drawn.append(all(excess <= 0 for excess in t.constraints.values()))
            table.writerow([t.number, t.state.name, *own, seconds, reason, *drawn])


def reported(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial has reported beside its value."""
    return {
        name: value
        for name, value in trial.user_attrs.items()
        if name not in BOOKKEEPING and isinstance(value, str | int | float)
    }


def write_best(path: Path, trial: FrozenTrial, config: DictConfig, *, why: str = "") -> None:
    """Write the trial's overrides as a configuration of its own, built upon that of the search."""
    parser, values = OverridesParser.create(), OmegaConf.create()
    name = config.hydra.job.config_name  # none of an application that has its keys in code
    defaults: list[Any] = [str(name)] if name else []
    own = [f"{name}={text(value)}" for name, value in trial.params.items()]
    for line in trial.user_attrs.get(OVERRIDES, own):  # which a trial of others has not got
        override = parser.parse_override(line)
        name, value = override.key_or_group, override.value()
        if name == SEARCHES:
            continue
        if name in config.hydra.runtime.choices and not isinstance(value, dict):
            key = override.get_key_element().lstrip("+~")
            prefix = "" if override.is_add() else "override "
            defaults.append({prefix + key: None if override.is_delete() else value})
        elif not override.is_delete():
            OmegaConf.update(values, name, value, force_add=True)
    header = f"# Trial {trial.number}, which reached {', '.join(map(str, trial.values))}{why}.\n"
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    content = {"defaults": [*defaults, "_self_"], **plain}
    with _replacing(path) as file:
        file.write(header + yaml.safe_dump(content, sort_keys=False))


def write_results(path: Path, best: Sequence[FrozenTrial]) -> None:
    """Write the best as hydra-optuna-sweeper does, for what reads its file."""
    content: dict[str, Any] = {"name": "optuna"}
    if len(best[0].values) == 1:
        content |= {"best_params": dict(best[0].params), "best_value": best[0].value}
    else:
        own = [{"params": dict(t.params), "values": list(t.values)} for t in best]
        content["solutions"] = own
    with _replacing(path) as file:
        yaml.safe_dump(content, file, sort_keys=False)


def write_front(folder: Path, front: Sequence[FrozenTrial], config: DictConfig) -> list[Path]:
    """Write the front as a table, its knee first, and a configuration for each other point."""
    place = folder / Path(PARETO).stem
    place.mkdir(exist_ok=True)
    write_trials(folder / PARETO, front)
    files = {place / f"{trial.number}.yaml": trial for trial in front[1:]}
    for path in set(place.glob("*.yaml")) - set(
        files
    ):  # of points that better ones have pushed out
        path.unlink()
    for path in set(files) - set(place.iterdir()):
        write_best(path, files[path], config)
    return [folder / PARETO, *files]


def chosen(front: Sequence[FrozenTrial]) -> str:
    """Why the first of a Pareto front is first; nothing if there is no choice."""
    if len(front) == 1:
        return ""
    return (
        f": of {len(front)} on the Pareto front the knee, nearest to the best of every objective "
        "when each is scaled to the front; pareto/ has the others"
    )


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Write a file in one step: whoever reads it, at whatever moment, finds a whole one."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("w", newline="") as file:
        yield file
    draft.replace(path)
