"""Commands run as a user runs them, but forked from a process that has imported PyTorch already."""

import os
import runpy
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
_context = get_context("forkserver")
_context.set_forkserver_preload(["perceptrail.training", "tests.running"])


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


def _run(script: str, arguments: tuple[str, ...], cwd: Path, output: Path) -> None:
    os.chdir(cwd)
    with output.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.argv = [str(ROOT / script), *arguments]
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
        runpy.run_path(sys.argv[0], run_name="__main__")


def run(script: str, *arguments: str, cwd: Path) -> Command:
    """Run a command to its end and expect success."""
    done = Command(script, *arguments, cwd=cwd).wait()
    assert done.code == 0, done.output
    return done
