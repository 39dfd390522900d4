"""Processes: which is which, since their numbers are used again, and those that follow another."""

import ctypes
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from typing import Any

import psutil

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that comes when the parent ends
TOLERANCE_S = 2.0  # by so much the time of a start moves when the clock of the machine is set


def identity(pid: int) -> str:
    """A process of this machine, by number and start."""
    return f"{pid}@{psutil.Process(pid).create_time():.2f}"


def is_alive(process: str) -> bool:
    """Whether the process that `identity` described is still there."""
    pid, _, started = process.partition("@")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < TOLERANCE_S
    except (psutil.NoSuchProcess, ValueError):  # it has ended, or was never described
        return False


def fork(work: Callable[..., None], *args: Any) -> ForkProcess:
    """Start a process forked for work: it ends with this one, which alone hears of Ctrl-C."""
    process = get_context("fork").Process(target=_follow, args=(work, *args), daemon=True)
    with warnings.catch_warnings():
        # Python 3.12 warns of the threads that a fork will not have: these need none.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def _follow(work: Callable[..., None], *args: Any) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(*args)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Have Ctrl-C wait while processes are forked: Python drops what is raised amid a fork.

    In a process that this one forks Ctrl-C does nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # it hears of none
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
