"""Which process is which, since their numbers are used again."""

import psutil

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
