"""Where a study is kept, how it is opened, and how its pruner is built for a trial elsewhere.

An address is a file (Optuna's journal, which needs no server and is safe for parallel processes)
or a database URL such as postgresql://user@host/name.
"""

import fcntl
import hashlib
import inspect
import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import FileIO
from pathlib import Path
from pkgutil import resolve_name
from tempfile import gettempdir
from typing import Any

import optuna
from filelock import FileLock
from optuna import Study
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from perceptrail.errors import UserError, did_you_mean
from perceptrail.passwords import masked
from perceptrail.search.constraints import imported
from perceptrail.search.options import REPLACED, is_default
from perceptrail.search.settings import Direction, Settings

PRUNER = "pruner"  # the study attribute by which a trial elsewhere finds its pruner
HYDRAS = ("_target_", "_partial_", "_recursive_", "_convert_")  # keys that are no arguments
KEY = "key"  # the study attribute that names it in MLflow
PLACE = "place"  # that of the file that it was last opened in


class _Journal(JournalFileBackend):
    """A journal file that waits for the disk only when a trial ends, not at each of its lines.

    What a power cut could take is then the trials that would have to run again in any case. Its
    lock ends with its holder, where Optuna's own outlives a killed one by 30 seconds.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with Path(self._file_path).open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it closes; FileLock costs 0.2 ms
            _cut_torn_line(file)
            file.write(lines.encode())
            if any(log["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                os.fsync(file.fileno())


def _cut_torn_line(file: FileIO) -> None:
    """Drop what a writer that died has left of its last line, or the next would be added to it."""
    if (size := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, size - 1) != b"\n":
        whole = os.pread(file.fileno(), size, 0)
        file.truncate(whole.rfind(b"\n") + 1)


@cache
def open_storage(address: str) -> BaseStorage:
    """The storage at an address, made if it is not there; one object a process.

    Raises UserError if it cannot be opened.
    """
    try:
        if address.startswith("{"):
            made = _nested(BaseStorage, json.loads(address))
            return made if isinstance(made, BaseStorage) else JournalStorage(made)
        if is_database(address):
            with exclusive(address, "tables"):  # which only one of several processes can make
                return RDBStorage(address)
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(_Journal(str(path)))
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"hydra.sweeper.storage={masked(address)}: cannot be opened ({reason}); "
            "give a file, or a database as postgresql://user@host/name"
        ) from error


def is_database(address: str) -> bool:
    """Whether it is a database's URL; else it is a file, or a mapping as JSON."""
    return "://" in address and not address.startswith("{")


def is_shared(address: str) -> bool:
    """Whether processes on other machines may use it as they like."""
    return "://" in address or address.startswith("{")


@contextmanager
def exclusive(address: str, purpose: str) -> Iterator[None]:
    """Let one process at a time in here, of all that use the storage, on whatever machine."""
    digest = hashlib.sha256(purpose.encode()).digest()
    if is_database(address) and make_url(address).get_backend_name() == "postgresql":
        engine = create_engine(address)
        with engine.connect() as connection:  # with whose end the lock ends
            key = int.from_bytes(digest[:8], signed=True)
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
            yield
        engine.dispose()
        return
    beside = Path(f"{address}.{digest.hex()[:8]}.lock")
    # For another kind of database, which no other machine should use.
    apart = Path(gettempdir()) / f"perceptrail-{digest.hex()}.lock"
    with FileLock(apart if is_shared(address) else beside):
        yield


@contextmanager
def _experiments_allowed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def build(kind: type, spec: Mapping[str, Any], **given: Any) -> Any:
    """The sampler or pruner that `_target_` names, with the other keys as its arguments.

    `given` are arguments passed on to a class that takes them. Raises UserError for a class that
    is not of the kind, or an argument that it does not take.
    """
    name = kind.__name__.removeprefix("Base").lower()
    settings = {key: value for key, value in spec.items() if key not in HYDRAS}
    try:
        made = resolve_name(str(spec.get("_target_")))
    except (ImportError, AttributeError, ValueError):
        made = None
    if instead := REPLACED.get(str(spec.get("_target_"))):
        raise UserError(f"hydra.sweeper.{name}._target_={spec['_target_']}: {instead}")
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise UserError(
            f"hydra.sweeper.{name}._target_={spec.get('_target_')}: there is no such {name}; "
            f"give an option of hydra/sweeper/{name}, or the full name of a class"
        )
    accepted = inspect.signature(made).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in accepted.values())
    for key, value in list(settings.items()):
        if key not in accepted and not takes_all:
            if not is_default(key, value):
                hint = did_you_mean(key, accepted)
                raise UserError(
                    f"hydra.sweeper.{name}.{key}: {made.__name__} does not take it{hint}"
                )
            del settings[key]  # of the option whose _target_ was replaced
        elif value is None:
            del settings[key]  # as the class has it
        elif isinstance(value, Mapping) and "_target_" in value:
            settings[key] = _nested(kind, value, **given)
        elif isinstance(value, str) and key in accepted and "Callable" in str(accepted[key]):
            settings[key] = imported(f"hydra.sweeper.{name}.{key}", value)
    known = {k: v for k, v in given.items() if k in accepted and k not in settings}
    try:
        with _experiments_allowed():
            return made(**settings, **known)
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.{name}: {made.__name__} refuses: {error}") from error


def _nested(kind: type, spec: Mapping[str, Any], **given: Any) -> Any:
    """What an argument's `_target_` makes: of the kind itself as `build`, else as Hydra does."""
    try:
        return build(kind, spec, **given)
    except UserError:
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        try:
            return instantiate(dict(spec), _convert_="all")
        except InstantiationException as error:
            raise UserError(f"hydra.sweeper: {str(error).strip().splitlines()[0]}") from error


def _is_copy(study: Study, address: str) -> bool:
    """Whether its file is another than it was, which is still there."""
    place = study.user_attrs.get(PLACE)
    if place is None or is_shared(address) or not Path(place).exists():
        return False
    return not Path(address).samefile(place)


def open_study(
    settings: Settings,
    *,
    address: str,
    directions: list[Direction],
    objectives: Sequence[str],
    sampler: BaseSampler,
    distributions: Mapping[str, BaseDistribution],
) -> Study:
    """The study of that name, begun if there is none.

    Raises UserError if it was begun with other directions or an incompatible space.
    """
    assert settings.study_name is not None
    name, pruner = settings.study_name, build(BasePruner, settings.pruner)
    if len(directions) > 1 and not isinstance(pruner, NopPruner):
        raise UserError("hydra.sweeper.pruner: several objectives cannot be pruned; use none")
    if len(directions) > 1 and isinstance(sampler, CmaEsSampler):
        raise UserError("hydra.sweeper.sampler: CMA-ES takes one objective; use tpe or nsgaii")
    given = {"storage": open_storage(address), "sampler": sampler, "pruner": pruner}
    with exclusive(address, f"study {name}"):
        try:
            study = optuna.create_study(study_name=name, directions=directions, **given)
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=name, **given)
        study.set_user_attr(PRUNER, dict(settings.pruner))
        begun = [direction.name.lower() for direction in study.directions]
        if begun != directions:
            raise UserError(
                f"hydra.sweeper.direction={directions}: study {name!r} was begun with {begun}"
            )
        if objectives:
            with _experiments_allowed():
                study.set_metric_names(list(objectives))
        if KEY not in study.user_attrs or _is_copy(study, address):
            study.set_user_attr(KEY, uuid.uuid4().hex)
        place = None if is_shared(address) else str(Path(address).absolute())
        if study.user_attrs.get(PLACE) != place:
            study.set_user_attr(PLACE, place)
    for trial in study.get_trials(deepcopy=False):
        for key, old in trial.distributions.items():
            try:
                check_distribution_compatibility(old, distributions.get(key, old))
            except ValueError as error:
                raise UserError(
                    f"study {name!r} was begun with another set of values for {key} "
                    f"({old}); give the new search another hydra.sweeper.study_name"
                ) from error
    return study
