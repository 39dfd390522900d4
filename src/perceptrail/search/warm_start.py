"""Trials of another study, taken over with their values by a study that begins.

They are told apart by the attribute `copied`, and do not count towards `n_trials`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
from optuna import Study
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState, create_trial

from perceptrail.errors import UserError, did_you_mean
from perceptrail.passwords import masked
from perceptrail.search.domains import Values
from perceptrail.search.results import objectives, reported
from perceptrail.search.roll import COPIED, OVERRIDES, REASON
from perceptrail.search.space import Space
from perceptrail.search.storage import open_storage

log = logging.getLogger(__name__)

KEY = "hydra.sweeper.warm_start"


Limits = Mapping[str, Callable[[Mapping[str, float]], float]]  # on outcomes: by how much exceeded


def source(
    given: str, space: Space, directions: Sequence[str], limits: Limits
) -> list[FrozenTrial]:
    """The trials of the study at `address:study` that are points of `space`, as it has them, judged
    by these limits; without those that have not reported what these are about.

    The study may be left out where there is one. Raises UserError if there is none, or if it was
    optimized in other directions.
    """
    study = _open(given)
    if (other := [d.name.lower() for d in study.directions]) != list(directions):
        raise UserError(f"{KEY}={masked(given)}: that study optimizes {other}, not {directions}")
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    found = [copy for trial in ended if (copy := _copy(trial, study, space, limits))]
    log.info(f"{len(found)} of {len(ended)} trials of {study.study_name} are points of this search")
    return found


def take_over(study: Study, trials: Sequence[FrozenTrial]) -> None:
    """Add trials to a study, once."""
    there = {t.user_attrs.get(COPIED) for t in study.get_trials(deepcopy=False)}
    study.add_trials([t for t in trials if t.user_attrs[COPIED] not in there])


def _open(given: str) -> Study:
    address, _, name = given.rpartition(":")
    if not address or "/" in name:  # the colon is another one
        address, name = given, ""
    if "://" not in address:
        path = Path(address).absolute()
        path = path / "study.journal" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{KEY}={given}: there is no file {path}")
        address = str(path)
    storage = open_storage(address)
    names = [study.study_name for study in storage.get_all_studies()]
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        hint = did_you_mean(name, names)
        raise UserError(
            f"{KEY}={masked(given)}: name one of its studies after a colon: "
            f"{', '.join(names) or 'it has none'}{hint}"
        )
    return optuna.load_study(study_name=name, storage=storage)


def _copy(trial: FrozenTrial, study: Study, space: Space, limits: Limits) -> FrozenTrial | None:
    """A trial as one of `space`; None if it is not a point of it."""
    known, fixed = space.distributions(), space.fixed()
    if any(fixed.get(k, v) != v for k, v in trial.params.items() if k not in known):
        return None
    drawn: Values = {k: v for k, v in trial.params.items() if k in known}
    for name, value in drawn.items():
        try:
            if not known[name]._contains(known[name].to_internal_repr(value)):
                return None
        except ValueError:  # of another kind
            return None
    try:
        values = space.redraw(drawn)
    except KeyError:  # which it does not set
        return None
    drawn = space.undraw(values)
    overrides = [line for line in space.overrides(values) if line == masked(line)]
    known_of = reported(trial)
    if trial.state == TrialState.COMPLETE:
        known_of |= dict(zip(objectives(study), trial.values, strict=True))
    try:
        excesses = {text: excess(known_of) for text, excess in limits.items()}
    except UserError:
        return None
    origin = f"{study.study_name}#{trial.number}"
    own = {OVERRIDES: overrides, COPIED: origin, REASON: f"copied from {origin}"}
    return create_trial(
        state=trial.state,
        values=trial.values if trial.state == TrialState.COMPLETE else None,
        params=drawn,
        distributions={name: known[name] for name in drawn},
        user_attrs=reported(trial) | own,
        system_attrs={f"{_CONSTRAINTS_KEY}:{k}": excess for k, excess in excesses.items()},
        intermediate_values=trial.intermediate_values,
    )
