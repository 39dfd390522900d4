"""Where a study is kept, and how its pruner is built; also for a trial that runs elsewhere.

An address is a file (Optuna's journal, which needs no server and is safe for parallel processes)
or a database URL such as postgresql://user@host/name.
"""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._storage import JournalOperation
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from perceptrail.errors import UserError, did_you_mean
from perceptrail.passwords import masked


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


class _Journal(JournalFileBackend):
    """A journal file that waits for the disk only when a trial ends, not at each of its lines.

    What a power cut could take is then the trials that would have to run again in any case.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, _KernelLock(path)
        super().__init__(str(path), self._lines)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, all of them or none."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lines.acquire()
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(lines.encode())
                if any(log["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                    os.fsync(file.fileno())
        finally:
            self._lines.release()


@cache
def open_storage(address: str) -> BaseStorage:
    """The storage at an address, made if it is not there; one object a process.

    Raises UserError if it cannot be opened.
    """
    try:
        if "://" in address:
            with exclusive(address, "tables"):  # which only one of several processes can make
                return RDBStorage(address)
        path = Path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(_Journal(path))
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
            f"hydra.sweeper.storage={masked(address)}: cannot be opened ({reason}); "
            "give a file, or a database as postgresql://user@host/name"
        ) from error


@contextmanager
def exclusive(address: str, purpose: str) -> Iterator[None]:
    """Let one process at a time in here, of all that use the storage, on whatever machine."""
    digest = hashlib.sha256(purpose.encode()).digest()
    if "://" not in address:
        with FileLock(f"{address}.{digest.hex()[:8]}.lock"):
            yield
        return
    if make_url(address).get_backend_name() != "postgresql":  # which no other machine should use
        with FileLock(Path(gettempdir()) / f"perceptrail-{digest.hex()}.lock"):
            yield
        return
    engine = create_engine(address)
    with engine.connect() as connection:  # with whose end the lock ends
        key = int.from_bytes(digest[:8], signed=True)
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        yield
    engine.dispose()


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
