"""Worker processes: each starts once, runs one trial after the other, and dies with the search.

A worker has its share of the processor's cores as threads, an accelerator of its own where there
are several (round robin where there are fewer than workers), a process group of its own (Ctrl-C is
for the sweeper, which tells its workers), and a log file for what its trials print.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
from hydra.core.singleton import Singleton
from optuna.trial import TrialState

from perceptrail.search.engines import Engine, Outcome, Task

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
VISIBLE = "CUDA_VISIBLE_DEVICES"
GRACE_S = 10  # to close a run after an interrupt


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    line: Connection
    place: int  # among the workers, which one that replaces it takes over
    number: int | None = None  # the trial that it runs


class Workers(Engine):
    """N worker processes, started when there is work for them."""

    def __init__(self, task: Task, *, slots: int, logs: Path) -> None:
        super().__init__(task, slots=slots)
        self._logs = logs
        self._workers: list[_Worker] = []
        self._started = 0
        self._pickled = cloudpickle.dumps((task, Singleton.get_state()))
        self._accelerators = _accelerators()
        threads = str(max(1, _cores() // slots))
        self._environment = dict.fromkeys(THREADS, threads) | dict(os.environ)

    def submit(self, number: int, overrides: Sequence[str]) -> None:
        """Give a trial to a free worker."""
        free = [worker for worker in self._workers if worker.number is None]
        worker = free[0] if free else self._start()
        worker.number = number
        with suppress(BrokenPipeError):  # it died idle, which `wait` will find out
            worker.line.send((number, list(overrides)))

    def wait(self) -> list[Outcome]:
        """Wait for the first trials to end, or for their workers to die."""
        busy = {w.line: w for w in self._workers if w.number is not None}
        return [self._receive(busy[line]) for line in connection.wait(list(busy))]  # type: ignore[index]

    def close(self) -> None:
        """Interrupt those that run a trial, let the others go; kill whoever does not go."""
        for worker in self._workers:
            if worker.number is not None:
                worker.process.send_signal(signal.SIGINT)
            else:
                worker.line.close()
        for worker in self._workers:
            try:
                worker.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.close()
        self._workers = []

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        place = min(set(range(self.slots)) - {worker.place for worker in self._workers})
        environment = self._environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
        if len(self._accelerators) > 1:
            environment[VISIBLE] = self._accelerators[place % len(self._accelerators)]
        self._logs.mkdir(parents=True, exist_ok=True)
        with theirs, (self._logs / f"{self._started}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        worker = _Worker(process, Connection(ours.detach()), place)
        worker.line.send_bytes(self._pickled)
        self._workers.append(worker)
        self._started += 1
        return worker

    def _receive(self, worker: _Worker) -> Outcome:
        number, worker.number = worker.number, None
        assert number is not None
        try:
            outcome: Outcome = worker.line.recv()
        except (EOFError, ConnectionResetError):
            self._workers.remove(worker)
            worker.line.close()
            code = worker.process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome(number, TrialState.FAIL, reason=f"its worker died ({how})", lost=True)
        return outcome


def _accelerators() -> list[str]:
    """NVIDIA's accelerators that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve(descriptor: int) -> None:
    """Run the trials that come over the line, until it closes."""
    line = Connection(descriptor)
    task, singletons = cloudpickle.loads(line.recv_bytes())
    Singleton.set_state(singletons)
    composer = task.composer()
    trials: queue.SimpleQueue[tuple[int, list[str]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(line, trials), daemon=True).start()
    while True:
        number, overrides = trials.get()
        line.send(task.run(composer, number, overrides))


def _receive(line: Connection, trials: "queue.SimpleQueue[tuple[int, list[str]]]") -> None:
    try:
        while True:
            trials.put(line.recv())
    except (EOFError, ConnectionResetError):
        os._exit(1)  # the sweeper is gone: at once, in the middle of whatever trial


if __name__ == "__main__":
    serve(int(sys.argv[1]))
