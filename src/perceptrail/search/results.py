"""What a search leaves to read: a table of its trials, and its best configuration as a preset."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

TRIALS, BEST = "trials.csv", "best.yaml"
OVERRIDES = "overrides"  # the trial attribute that keeps them
SEARCHES = "hparams_search"  # the config group of searches, which only say how to search


@dataclass(frozen=True)
class Standing:
    """Where a study stands: its trials, the best of them, and how many there are of each kind."""

    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]
    extremes: Mapping[str, float]  # the best value of each objective, by its name

    @classmethod
    def of(cls, study: Study, trials: Sequence[FrozenTrial]) -> Self:
        """The standing after these trials."""
        values = zip(*(t.values for t in trials if t.state == TrialState.COMPLETE), strict=True)
        columns = zip(objectives(study), study.directions, values, strict=False)
        extremes = {
            name: (min if direction == StudyDirection.MINIMIZE else max)(column)
            for name, direction, column in columns
        }
        return cls(trials, best_trials(study, trials), extremes)

    @property
    def counts(self) -> dict[str, int]:
        """How many trials have finished, were pruned, have failed."""
        kinds = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        kinds["failed"] = TrialState.FAIL
        return {name: sum(t.state == kind for t in self.trials) for name, kind in kinds.items()}

    @property
    def done(self) -> int:
        """How many count towards the total."""
        return self.counts["finished"] + self.counts["pruned"]


def objectives(study: Study) -> list[str]:
    """The names of what is optimized."""
    count = len(study.directions)
    unnamed = ["value"] if count == 1 else [f"value_{i}" for i in range(count)]
    return study.metric_names or unnamed


def best_trials(study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best trial, the first of equals; of several objectives, those that none dominates."""
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    signs = [1 if d == StudyDirection.MINIMIZE else -1 for d in study.directions]
    costs = {t.number: [s * v for s, v in zip(signs, t.values, strict=True)] for t in done}
    if len(signs) == 1:
        return sorted(done, key=lambda t: (costs[t.number], t.number))[:1]

    def dominates(a: list[float], b: list[float]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return [t for t in done if not any(dominates(c, costs[t.number]) for c in costs.values())]


def write_trials(path: Path, trials: Sequence[FrozenTrial]) -> None:
    """Write one line a trial: number, state, values, seconds, reason of a failure, parameters."""
    objectives = max((len(t.values) for t in trials if t.values), default=1)
    values = ["value"] if objectives == 1 else [f"value_{i}" for i in range(objectives)]
    params = list(dict.fromkeys(name for t in trials for name in t.params))
    with _replacing(path) as file:
        table = csv.writer(file)
        table.writerow(["number", "state", *values, "seconds", "reason", *params])
        for t in trials:
            seconds = round(t.duration.total_seconds(), 3) if t.duration else ""
            own = t.values or [""] * objectives
            reason = t.user_attrs.get("reason", "")
            drawn = [t.params.get(name, "") for name in params]
            table.writerow([t.number, t.state.name, *own, seconds, reason, *drawn])


def write_best(path: Path, trial: FrozenTrial, *, config_name: str, groups: Sequence[str]) -> None:
    """Write the trial's overrides as a configuration of its own, built upon `config_name`."""
    parser, defaults = OverridesParser.create(), list[Any]([config_name])
    values = OmegaConf.create()
    for line in trial.user_attrs[OVERRIDES]:
        override = parser.parse_override(line)
        name, value = override.key_or_group, override.value()
        if name == SEARCHES:
            continue
        if name in groups and not isinstance(value, dict):
            key = override.get_key_element().lstrip("+~")
            prefix = "" if override.is_add() else "override "
            defaults.append({prefix + key: None if override.is_delete() else value})
        elif not override.is_delete():
            OmegaConf.update(values, name, value, force_add=True)
    header = f"# Trial {trial.number}, which reached {', '.join(map(str, trial.values))}.\n"
    content = {"defaults": [*defaults, "_self_"], **_plain(OmegaConf.to_container(values))}
    with _replacing(path) as file:
        file.write(header + yaml.safe_dump(content, sort_keys=False))


def _plain(values: Any) -> Mapping[str, Any]:
    assert isinstance(values, dict)
    return values


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Write a file in one step: whoever reads it, at whatever moment, finds a whole one."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("w", newline="") as file:
        yield file
    draft.replace(path)
