"""Commands run as a user runs them, but forked from a process that has imported their libraries.

So are their recorders, since to import MLflow takes longer than most runs here. test_recorder.py
has real ones, as have the tests that call a command by its script.
"""

import gc
import logging
import multiprocessing
import os
import runpy
import signal
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from perceptrail import recorder

ROOT = Path(__file__).parent.parent
_context = get_context("forkserver")
_context.set_forkserver_preload(["perceptrail.training", "perceptrail.tracking", "running"])


class Command:
    """A running command: its process, and where its output goes."""

    def __init__(self, script: str, *arguments: str, cwd: Path) -> None:
        self._output = cwd / f"{script}.{os.urandom(4).hex()}.out"
        self.process: ForkServerProcess = _context.Process(
            target=_run, args=(script, arguments, cwd, self._output)
        )
        self.process.start()

    def wait(self) -> "Command":
        """Wait for the end, five minutes at most."""
        self.process.join(300)
        assert self.process.exitcode is not None, self.output
        return self

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self.process.kill()
        self.process.join(60)

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, negative when a signal ended it."""
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text() if self._output.exists() else ""


class _Forked:
    """The recorder's process, in place of the one that `subprocess.Popen` would start."""

    def __init__(self, command: list[str], *, pass_fds: list[int], **how: Any) -> None:
        assert command[1:3] == ["-m", "perceptrail.recorder"]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _record(*pass_fds)
            finally:
                os._exit(0)


def _record(line: int) -> None:
    from perceptrail.tracking import Store

    os.setsid()
    os.closerange(3, line)
    os.closerange(line + 1, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    os.nice(10)
    recorder.serve(Store, line)


def _run(script: str, arguments: tuple[str, ...], cwd: Path, output: Path) -> None:
    gc.freeze()  # what all these libraries have made is not garbage, nor to be gone through
    multiprocessing.set_start_method(None, force=True)  # as in a command that has not been forked
    os.chdir(cwd)
    with output.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        recorder.subprocess = SimpleNamespace(Popen=_Forked, DEVNULL=None)
        sys.argv = [str(ROOT / script), *arguments]
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
        runpy.run_path(sys.argv[0], run_name="__main__")


def run(script: str, *arguments: str, cwd: Path) -> Command:
    """Run a command to its end and expect success."""
    done = Command(script, *arguments, cwd=cwd).wait()
    assert done.code == 0, done.output
    return done
