"""Examples that stay in their file: what is taken of them is read, and forgotten again."""

import mmap
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HELD = 2**29  # bytes of a file that the process may hold
AROUND = 2**21  # those that may come with an example, in whose midst it lies
MOVED = 2**14  # examples that go to a GPU at once


@final
class Mapped:
    """Some rows of a matrix [n, d] in a memory map, taken out as tensors.

    Each row taken brings pages of the file into the process, which would hold them all in the end.
    The map of a large file lets go of them as it reads; reading them again costs little while the
    system has room for them.
    """

    def __init__(self, x: "NDArray[np.generic]", rows: Tensor) -> None:
        assert isinstance(x, np.memmap)
        self._map: mmap.mmap = x._mmap  # type: ignore[attr-defined]
        self._x, self._rows = torch.from_numpy(x), rows
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        """[n, d]."""
        return torch.Size([len(self._rows), self._x.shape[1]])

    @property
    def dtype(self) -> torch.dtype:
        """The type that the values have in their file."""
        return self._x.dtype

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The rows that an index names, as of a tensor."""
        assert dim == 0
        return self._take(self._rows[index.to(self._rows.device)])

    def __getitem__(self, part: slice) -> Tensor:
        return self._take(self._rows[part])

    def _take(self, rows: Tensor) -> Tensor:
        if self._x.nbytes <= HELD:
            return self._x.index_select(0, rows).to(self._device)
        taken, few = torch.empty(len(rows), self._x.shape[1], dtype=self.dtype), HELD // AROUND
        for part, into in zip(rows.split(few), taken.split(few), strict=True):
            torch.index_select(self._x, 0, part, out=into)
            self._map.madvise(mmap.MADV_DONTNEED)
        return taken.to(self._device)

    def to(self, device: torch.device) -> "Tensor | Mapped":
        """For use on that device: all rows there, if it has room for twice as much."""
        if device.type == "cuda":
            self._device = device
            if 2 * self._x.nbytes < torch.cuda.mem_get_info(device)[0]:
                whole = torch.empty(self.shape, dtype=self.dtype, device=device)
                for start in range(0, len(self), MOVED):
                    whole[start : start + MOVED] = self[start : start + MOVED]
                return whole
        return self
