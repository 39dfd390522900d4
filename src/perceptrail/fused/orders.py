"""The orders in which a stack's members go through their examples."""

import mmap
import os
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from perceptrail.data.module import shuffled
from perceptrail.errors import UserError
from perceptrail.processes import fork, interrupts_held

AHEAD = 3  # epochs

Order = NDArray[np.int32]


def draw(seeds: Sequence[int], n: int, epoch: int) -> Order:
    """Those of an epoch, [members, n]: for each member the one that it would have alone."""
    return np.stack([shuffled(n, seed=seed, epoch=epoch) for seed in seeds]).astype(np.int32)


class Orders:
    """What `draw` gives for one epoch after the other, made ahead by processes of their own.

    A GPU is through with an epoch of small networks before one process has drawn its orders. They
    are left in memory that all share: to send them takes as long as to draw them.
    """

    def __init__(self, seeds: Sequence[int], n: int, *, epochs: int) -> None:
        self._seeds, self._epochs, self._asked, self._taken = list(seeds), epochs, 0, 0
        memory = mmap.mmap(-1, AHEAD * len(seeds) * n * np.dtype(np.int32).itemsize)
        self._drawn = np.frombuffer(memory, np.int32).reshape(AHEAD, len(seeds), n)
        self._lines: list[Connection] = []
        self._processes = []
        count = min(8, len(os.sched_getaffinity(0)), len(seeds))
        with interrupts_held():
            for part in np.array_split(np.arange(len(seeds)), count):
                near, far = Pipe()
                self._processes.append(fork(self._work, far, part))
                far.close()
                self._lines.append(near)
        self._ask(range(len(seeds)))

    def take(self, members: Sequence[int], out: Order) -> None:
        """Put those of the next epoch into `out` [members, n], for members by their numbers.

        Members can only become fewer from one epoch to the next.
        """
        try:
            for line in self._lines:
                line.recv_bytes()
            np.take(self._drawn[self._taken % AHEAD], members, axis=0, out=out, mode="clip")
            self._taken += 1
            self._ask(members)
        except (EOFError, ConnectionError):
            raise UserError("hydra/launcher=fused: a process that shuffles has died") from None

    def close(self) -> None:
        """End the processes."""
        for process, line in zip(self._processes, self._lines, strict=True):
            process.terminate()
            process.join()
            line.close()

    def _ask(self, members: Sequence[int]) -> None:
        wanted = np.zeros(len(self._seeds), dtype=bool)
        wanted[members] = True
        while self._asked < min(self._epochs, self._taken + AHEAD):
            for line in self._lines:
                line.send_bytes(wanted.tobytes())
            self._asked += 1

    def _work(self, line: Connection, part: NDArray[np.int64]) -> None:
        for epoch in range(self._epochs):
            wanted = np.frombuffer(line.recv_bytes(), dtype=bool)
            for k in part[wanted[part]]:
                order = shuffled(self._drawn.shape[2], seed=self._seeds[k], epoch=epoch)
                self._drawn[epoch % AHEAD, k] = order
            line.send_bytes(b"")
