"""Processes: which is which, since their numbers are used again, and those that follow another."""

import ctypes
import signal

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


def follow() -> None:
    """In a process forked for work: end with the first one, which alone hears of Ctrl-C."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
