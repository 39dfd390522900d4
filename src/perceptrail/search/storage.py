"""Where a study is kept, and how its pruner is built; also for a trial that runs elsewhere.

An address is a file (Optuna's journal, which needs no server and is safe for parallel processes)
or a database URL such as postgresql://user@host/name.
"""

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from perceptrail.errors import UserError, did_you_mean

CREATION = 0x7065726365707472  # names the lock under which tables are made: any number will do


class _KernelLock(JournalFileOpenLock):
    """A lock that ends with its holder; Optuna's own outlives a killed one by 30 seconds."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire(poll_interval=0.001)
        return True

    def release(self) -> None:
        """Release it."""
        self._lock.release()


@cache
def open_storage(address: str) -> BaseStorage:
    """The storage at an address, made if it is not there; one object a process.

    Raises UserError if it cannot be opened.
    """
    try:
        if "://" in address:
            return _open_database(address)
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(address, _KernelLock(path)))
    except (
        ArgumentError,
        DBAPIError,
        ImportError,
        NoSuchModuleError,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"hydra.sweeper.storage={shown(address)}: cannot be opened ({reason}); "
            "give a file, or a database as postgresql://user@host/name"
        ) from error


def _open_database(url: str) -> RDBStorage:
    if make_url(url).get_backend_name() != "postgresql":
        return RDBStorage(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        # Processes that start together would all find no tables, and all but one fail to make them.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": CREATION})
        storage = RDBStorage(url)
    engine.dispose()  # which ends the lock
    return storage


def shown(address: str) -> str:
    """An address without its password."""
    return make_url(address).render_as_string() if "://" in address else address


def build(kind: type, spec: Mapping[str, Any], **given: Any) -> Any:
    """The sampler or pruner that `_target_` names, with the other keys as its arguments.

    `given` are arguments passed on to a class that takes them. Raises UserError for a class that
    is not of the kind, or an argument that it does not take.
    """
    name = kind.__name__.removeprefix("Base").lower()
    settings = {key: value for key, value in spec.items() if key != "_target_"}
    module, _, attribute = str(spec.get("_target_")).rpartition(".")
    try:
        made = getattr(import_module(module or "optuna"), attribute, None)
    except ImportError:
        made = None
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise UserError(
            f"hydra.sweeper.{name}._target_={spec.get('_target_')}: there is no such {name}; "
            f"give an option of hydra/sweeper/{name}, or the full name of a class"
        )
    accepted = inspect.signature(made).parameters
    for key, value in settings.items():
        if key not in accepted:
            hint = did_you_mean(key, accepted)
            raise UserError(f"hydra.sweeper.{name}.{key}: {made.__name__} does not take it{hint}")
        if isinstance(value, Mapping) and "_target_" in value:
            settings[key] = build(kind, value, **given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return made(**settings, **{k: v for k, v in given.items() if k in accepted})
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.{name}: {made.__name__} refuses: {error}") from error
