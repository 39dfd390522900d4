"""A process of its own for everything that is recorded.

It imports MLflow while the training process imports PyTorch, writes while that one computes, and
outlives it: when the training process dies, however suddenly, its runs are ended as KILLED.
"""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

from omegaconf import DictConfig

from perceptrail import runs
from perceptrail.errors import UserError
from perceptrail.passwords import unmasked

Message = tuple[bool, str, tuple[Any, ...], dict[str, Any]]  # awaited, method, args, kwargs
Place = tuple[str, str]  # a store's address, an experiment


class Server(Protocol):
    """What is served: any methods, one that is called when there is time or before another method
    than `log_run`, and one for the case that the client dies.
    """

    def flush(self) -> None:
        """Write what `log_run` has left."""

    def abandon(self) -> None:
        """End what is open."""


class Recorder:
    """The training process's end of the line: calls methods of a `tracking.Store` over there."""

    def __init__(self, uri: str, experiment: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perceptrail.recorder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the training process alone
            )
        self.client = os.getpid()  # also where this is used by a process forked from that one
        self._line = Connection(ours.detach())
        self._held: list[Message] | None = None
        self._place: Place = uri, experiment
        self._line.send(self._place)

    def post(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Have a method called in its turn; an error shows at the next `call`."""
        self._send((False, method, args, kwargs))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method, after all that was posted, and return what it returns.

        Raises `UserError` with the first error since the last call. That the process has died is
        told once: the next `connect` starts another.
        """
        assert self._held is None
        self._send((True, method, args, kwargs))
        try:
            error, value = self._line.recv()
        except (EOFError, ConnectionError):
            raise self._died() from None
        except KeyboardInterrupt:
            self._line.recv()  # or the next call would take it for its own
            raise
        if error is not None:
            raise UserError(error)
        return value

    def _send(self, message: Message) -> None:
        if self._held is not None:
            self._held.append(message)
            return
        try:
            self._line.send(message)
        except ConnectionError:
            raise self._died() from None

    def _died(self) -> UserError:
        if _RECORDERS.get(self._place) is self:
            del _RECORDERS[self._place]
        self._process.wait()
        return UserError("tracking: the process that records has died")


class RunLog:
    """One run's view of a recorder: the same calls with the run's id filled in, or no recorder."""

    def __init__(self, line: Recorder | None, run_id: str | None) -> None:
        self._line, self.run_id = line, run_id

    def post(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Have a method called for this run in its turn."""
        if self._line is not None:
            self._line.post(method, self.run_id, *args, **kwargs)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method for this run and wait for it."""
        if self._line is not None:
            return self._line.call(method, self.run_id, *args, **kwargs)
        return None

    @contextmanager
    def closing(self) -> Iterator[Self]:
        """End the run as what happens inside ends: FINISHED, FAILED by an error, else KILLED."""
        try:
            yield self
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self.call("close_run", status=status, note=f"{status}: {error}")
            raise
        self.call("close_run", status="FINISHED")


class LateLog(RunLog):
    """A run's view of a recorder that hears of the run when that is closed, of all at once.

    With the arguments of `open_run` as `opening`, the recorder has not opened it, and writes it
    while the next one ends: what goes wrong then shows at the end, in `settle`.
    """

    def __init__(
        self, line: Recorder, run_id: str, *, opening: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(line, run_id)
        self._opening = opening
        self._calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def post(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Keep a call."""
        self._calls.append((method, args, kwargs))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Keep a call; the one that closes the run has all of them done."""
        if method != "close_run":
            return self.post(method, *args, **kwargs)
        if self._opening is not None:
            return super().post("log_run", self._calls, **self._opening, **kwargs)
        super().post("log_all", self._calls)
        return super().call(method, *args, **kwargs)


_RECORDERS: dict[Place, Recorder] = {}  # of this process


def connect(uri: str, experiment: str) -> Recorder:
    """The recorder of this process for a store; started at the first call, then the same one."""
    place = uri, experiment
    if place not in _RECORDERS:
        _RECORDERS[place] = Recorder(uri, experiment)
    return _RECORDERS[place]


def log_of(run_dir: Path, uri: str | None) -> RunLog:
    """A stored run's view of the recorder for the store that it is in, if it is in one; `uri` may
    tell the store's password.

    Raises `UserError` where that is wanting.
    """
    record = runs.read_record(run_dir)
    if not record["run_id"]:
        return RunLog(None, None)
    line = connect(unmasked(record["uri"], uri, key="tracking.uri"), record["experiment"])
    return RunLog(line, record["run_id"])


def foresee(cfg: DictConfig) -> None:
    """Have the recorder of the stored run that `cfg.run` names import MLflow meanwhile."""
    name = str(cfg.run)  # which has not been checked yet
    if name == "best":
        if cfg.tracking.uri is not None:
            connect(cfg.tracking.uri, cfg.tracking.experiment)
        return
    below = (record.parent for record in Path(name).glob(f"*/{runs.RECORD}"))
    if run := next(below, None) or runs.find(name, finished=True):
        log_of(run, cfg.tracking.uri)


def settle() -> None:
    """Wait until all is recorded; raises UserError if something was not."""
    for line in list(_RECORDERS.values()):
        line.call("ping", "")


@contextmanager
def held() -> Iterator[dict[Place, list[Message]]]:
    """Hold back, in a forked process, what is posted inside; by recorder, for `forward`."""
    kept: dict[Place, list[Message]] = {place: [] for place in _RECORDERS}
    for place, line in _RECORDERS.items():
        line._held = kept[place]
    try:
        yield kept
    finally:
        for line in _RECORDERS.values():
            line._held = None


def forward(kept: Mapping[Place, Sequence[Message]]) -> None:
    """Post what a process that was forked from this one has held back."""
    for place, messages in kept.items():
        for message in messages:
            connect(*place)._send(message)


def serve(make: Callable[[str, str], Server], descriptor: int) -> None:
    """Do what comes over the line, in order, until it closes."""
    client, line = os.getppid(), Connection(descriptor)
    failure: str | None = None
    server: Server | None = None
    try:
        server = make(*line.recv())
    except Exception as error:
        failure = _message(error)
    while True:
        try:
            if server is not None and not line.poll():
                server.flush()
        except Exception as error:
            failure = failure or _message(error)
        try:
            awaited, method, args, kwargs = line.recv()
        except (EOFError, ConnectionError):  # the latter where an answer was left unread
            break
        if os.getppid() != client and method == "open_run":
            break  # too late: a run that nobody would close
        value = None
        if server is not None and failure is None:
            try:
                if method != "log_run":
                    server.flush()
                value = getattr(server, method)(*args, **kwargs)
            except Exception as error:
                failure = _message(error)
        if awaited:
            try:
                line.send((failure, value))
            except ConnectionError:
                break
            failure = failure if server is None else None
    if server is not None:
        server.abandon()


def _message(error: Exception) -> str:
    return (
        str(error) if isinstance(error, UserError) else f"tracking: {type(error).__name__}: {error}"
    )


if __name__ == "__main__":
    from perceptrail.tracking import Store

    os.nice(10)  # the processors are the training's first
    serve(Store, int(sys.argv[1]))
    gc.freeze()  # for a quick end
