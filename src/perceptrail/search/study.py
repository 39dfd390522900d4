"""Opening a study: its storage, its directions, and whether it is still the same search."""

import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import CmaEsSampler
from optuna.study import StudyDirection

from perceptrail.errors import UserError
from perceptrail.search.sampling import Proposer
from perceptrail.search.storage import build, exclusive, open_storage

DIRECTIONS = {
    "min": StudyDirection.MINIMIZE,
    "max": StudyDirection.MAXIMIZE,
    "minimize": StudyDirection.MINIMIZE,
    "maximize": StudyDirection.MAXIMIZE,
}
PRUNER = "pruner"  # the study attribute by which a trial elsewhere finds its pruner
KEY = "key"  # the study attribute that names it in MLflow


def open_study(
    name: str,
    *,
    address: str,
    directions: Sequence[str],
    proposer: Proposer,
    pruner: Mapping[str, Any],
    objectives: Sequence[str],
) -> Study:
    """The study of that name, begun if there is none.

    Raises UserError if it was begun with other directions or an incompatible space.
    """
    wanted = [DIRECTIONS[direction] for direction in directions]
    judge = build(BasePruner, pruner)
    if len(wanted) > 1 and not isinstance(judge, NopPruner):
        raise UserError("hydra.sweeper.pruner: several objectives cannot be pruned; use none")
    if len(wanted) > 1 and isinstance(proposer.base, CmaEsSampler):
        raise UserError("hydra.sweeper.sampler: CMA-ES takes one objective; use tpe or nsgaii")
    storage = open_storage(address)
    common: Any = {"storage": storage, "sampler": proposer.base, "pruner": judge}
    with exclusive(address, f"study {name}"):
        try:
            study = optuna.create_study(study_name=name, directions=wanted, **common)
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=name, **common)
        study.set_user_attr(PRUNER, dict(pruner))
        if study.directions != wanted:
            given, begun = ([d.name.lower() for d in of] for of in (wanted, study.directions))
            raise UserError(
                f"hydra.sweeper.direction={given}: study {name!r} was begun with {begun}"
            )
        if objectives:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(objectives))
        if KEY not in study.user_attrs:
            study.set_user_attr(KEY, uuid.uuid4().hex)
    _check_space(study, proposer.space.distributions())
    return study


def _check_space(study: Study, distributions: Mapping[str, BaseDistribution]) -> None:
    for trial in study.get_trials(deepcopy=False):
        for name, begun in trial.distributions.items():
            try:
                check_distribution_compatibility(begun, distributions.get(name, begun))
            except ValueError as error:
                raise UserError(
                    f"study {study.study_name!r} was begun with another set of values for {name} "
                    f"({begun}); give the new search another hydra.sweeper.study_name"
                ) from error
