"""Contenders as processes: perceptrail's public command, and peers that wait for tasks."""

import csv
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.task import DATA, ROOT, SEED, Task


class Epoch(NamedTuple):
    """Samples a second over the training batches alone, the validation accuracy after them, and
    the seconds from the start of the process to then.
    """

    speed: float
    accuracy: float
    elapsed: float


class Usage(NamedTuple):
    """Seconds of a whole process, and its peak memory in MiB, or that of a child that had more."""

    seconds: float
    memory: float


class Peer:
    """A peer in a process of its own, which trains when it is told to and waits between."""

    def __init__(self, name: str) -> None:
        self._started = time.perf_counter()
        plain = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        self._process = subprocess.Popen(  # which perceptrail, imported here, has set for itself
            [sys.executable, "-m", "benchmarks.peers", name],
            cwd=ROOT,
            env=plain,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._tasks, self._answers = self._process.stdin, self._process.stdout
        self._errors = _Reader(os.dup(self._process.stderr.fileno()))
        self._process.stderr.close()

    def train(self, task: Task) -> list[Epoch]:
        """Have it do a task; the epochs it took. Raises `RuntimeError` if it dies meanwhile."""
        print(task.dumps(), file=self._tasks, flush=True)
        epochs = []
        while (line := self._answers.readline()).strip():
            answer = json.loads(line)
            elapsed = time.perf_counter() - self._started
            epochs.append(Epoch(task.images / answer["seconds"], answer["accuracy"], elapsed))
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended\n{self._errors.text()}")
        return epochs

    def close(self) -> Usage:
        """Let it end."""
        self._tasks.close()
        usage = _wait(self._process, self._started, self._errors)
        self._answers.close()
        return usage


class Peers:
    """Peers by name, each started at its first task: importing takes a processor."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers.values():
            peer.close()

    def train(self, name: str, task: Task) -> list[Epoch]:
        """As `Peer.train`."""
        if name not in self._peers:
            self._peers[name] = Peer(name)
        return self._peers[name].train(task)


@dataclass(frozen=True)
class Run:
    """A run of `train.py`: its directory, its epochs, its process, its metrics.json, and what a
    callback wrote.
    """

    folder: Path
    epochs: list[Epoch]
    usage: Usage
    metrics: dict[str, Any]
    noted: list[dict[str, float]]


@dataclass(frozen=True)
class Jobs:
    """A multirun: its folder, its process, the metrics.json of each job that has come to one."""

    folder: Path
    usage: Usage

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Of all jobs, by number."""
        files = sorted(self.folder.glob("*/metrics.json"), key=lambda file: int(file.parent.name))
        return [json.loads(file.read_text()) for file in files]


@dataclass(frozen=True)
class Lab:
    """Where perceptrail's runs take place: an interpreter, and a folder with the MLflow store."""

    python: str
    folder: Path

    def command(self, name: str, *arguments: str) -> list[str]:
        """One of perceptrail's public commands."""
        return [self.python, str(ROOT / name), *arguments]

    def train(self, *overrides: str, callback: str | None = None) -> Run:
        """Run `train.py`, its progress bar on a terminal, with one of the `rival` callbacks."""
        run = Path(tempfile.mkdtemp(dir=self.folder))
        notes = run / "notes.jsonl"
        added = [f"_target_=benchmarks.rival.{callback}", f"path={notes}"] if callback else []
        command = self.command("train.py", f"hydra.run.dir={run}", "trainer=cpu", *overrides)
        command += [f"+callbacks.noted.{argument}" for argument in added]
        usage = self._done(command)
        metrics = json.loads((run / "metrics.json").read_text())
        with (run / "history.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        noted = [json.loads(line) for line in notes.read_text().splitlines()] if callback else []
        return Run(run, _epochs(rows, metrics), usage, metrics, noted)

    def multirun(self, *overrides: str, threads: int = 1) -> Jobs:
        """Run `train.py -m`, without figures, and with one thread a process unless told more."""
        return self.search("train.py", "trainer=cpu", "figures=false", *overrides, threads=threads)

    def search(self, application: str, *overrides: str, threads: int = 1) -> Jobs:
        """Run any application's multirun."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        command = self.command(application, "-m", f"hydra.sweep.dir={folder}", *overrides)
        return Jobs(folder, self._done(command, OMP_NUM_THREADS=str(threads)))

    def _done(self, command: Sequence[str], **environment: str) -> Usage:
        watched, terminal = pty.openpty()  # a bar is drawn on a terminal alone
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        return _wait(process, started, _Reader(watched))


def seeds(count: int) -> str:
    """So many jobs, by their seeds."""
    return "seed=" + ",".join(map(str, range(SEED, SEED + count)))


def overrides(task: Task, *, jobs: int = 1) -> list[str]:
    """The task as arguments of `train.py`; of its ends, `seconds` is not among them."""
    stop = ("monitor=val/acc", "mode=max", f"stopping_threshold={task.target}")
    stops = [f"++callbacks.early_stopping.{given}" for given in stop]
    return [
        *(seeds(jobs), f"data.dir={DATA}", f"data.train_size={task.images}"),
        *(f"data.batch_size={task.batch}", f"model.hidden={list(task.hidden)}"),
        *(f"model.dropout={task.dropout}", "schedule=constant"),
        *("optimizer=adam", f"optimizer.lr={task.rate}", f"trainer.max_epochs={task.epochs}"),
        *(stops if task.target < 1 else ["callbacks.early_stopping=null"]),
    ]


def _epochs(rows: Sequence[dict[str, str]], metrics: dict[str, float]) -> list[Epoch]:
    """An epoch takes as long as any other, which is how the time within a run is shared out."""
    start, each = metrics["time/startup_s"], metrics["time/fit_s"] / len(rows)
    return [
        Epoch(float(row["train/samples_per_second"]), float(row["val/acc"]), start + i * each)
        for i, row in enumerate(rows, start=1)
    ]


class _Reader(threading.Thread):
    """Reads what comes from a file descriptor until it closes, so that no writer has to wait."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor, self._parts = descriptor, bytearray()
        self.start()

    def run(self) -> None:
        try:
            while part := os.read(self._descriptor, 65536):
                self._parts += part
        except OSError:  # how a terminal says that its other end has closed
            pass
        os.close(self._descriptor)

    def text(self) -> str:
        """The end of all that came."""
        self.join()
        return self._parts[-4000:].decode(errors="replace")


def _wait(process: "subprocess.Popen[Any]", started: float, errors: _Reader) -> Usage:
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!r} ended\n{errors.text()}")
    return Usage(seconds, used.ru_maxrss / 1024)
