"""The orders in which a stack's members go through their examples."""

import os
import warnings
from collections import deque
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult, Pool

import numpy as np
from numpy.typing import NDArray

from perceptrail.data.module import shuffled
from perceptrail.processes import follow

AHEAD = 2  # epochs

Order = NDArray[np.int32]


def draw(seeds: Sequence[int], n: int, epoch: int) -> Order:
    """Those of an epoch, [members, n]: for each member the one that it would have alone."""
    return np.stack([shuffled(n, seed=seed, epoch=epoch) for seed in seeds]).astype(np.int32)


class Orders:
    """What `draw` gives for one epoch after the other, made ahead by processes of their own.

    A GPU is through with an epoch of small networks before one process has drawn its orders.
    """

    def __init__(self, n: int, *, epochs: int) -> None:
        self._n, self._epochs, self._next = n, epochs, 0
        self._count = min(8, len(os.sched_getaffinity(0)))
        with warnings.catch_warnings():
            # Python 3.12 warns of the threads that a fork will not have: these need none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pool: Pool = get_context("fork").Pool(self._count, initializer=follow)
        self._asked: deque[tuple[list[int], AsyncResult[list[Order]]]] = deque()

    def take(self, seeds: dict[int, int]) -> Order:
        """Those of the next epoch [members, n] for members, known by number, with their seeds.

        Members can only become fewer from one epoch to the next.
        """
        while self._next < self._epochs and len(self._asked) <= AHEAD:
            parts = np.array_split(list(seeds.values()), self._count)
            work = [(part.tolist(), self._n, self._next) for part in parts if len(part)]
            self._asked.append((list(seeds), self._pool.starmap_async(draw, work)))
            self._next += 1
        members, drawn = self._asked.popleft()
        return np.concatenate(drawn.get())[[m in seeds for m in members]]

    def close(self) -> None:
        """End the processes."""
        self._pool.terminate()
        self._pool.join()
