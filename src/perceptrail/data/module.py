"""Data for training, resident on the training device: whole batches are taken by index."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any, Protocol, final

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceptrail.data.augment import Augment, Transforms
from perceptrail.data.dataset import Dataset, split
from perceptrail.data.mapped import Mapped
from perceptrail.errors import UserError, did_you_mean

Batch = tuple[Tensor, Tensor]
Statistic = float | list[float]  # of all values, or of those of each column

VAL_BATCH = 4096  # without gradients, larger batches only cost memory
MAPPED = 2**28  # bytes from which on data stay in their file
CHUNK = 2**14  # examples looked at together
IN_CACHE = 2**8  # and of bytes, made numbers of twice the precision
GATHERED = 2**22  # bytes of inputs at once: few calls, and they stay in a processor's cache


def numbers(x: Tensor) -> Tensor:
    """Values as float32, bytes as n / 255, to the bit as `dataset.as_float` has them."""
    # By a tensor, since a GPU would multiply by the reciprocal of a number.
    if x.dtype != torch.uint8:
        return x.float()
    return x.float().div_(torch.full((), 255.0, device=x.device))


def shuffled(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order [n] in which an epoch, counted from 0, goes through n training examples."""
    return np.random.default_rng((seed, epoch + 1)).permutation(n)


@final
class Batches:
    """One process's share of the examples x [n, d], y [n, ...], as batches (x[i], y[i]).

    Values that are bytes become `numbers` by the batch, there being fewer of them to be moved; or
    inputs are given `as_stored`, to who makes them numbers where they are used.

    With a `seed`, each pass is in an order of its own, which follows from `seed` and `epoch()`
    alone; the shares of all `world` processes then have equally many examples, the last few being
    repeated where n does not divide. Without one, x and y are gone through as they are and no
    example is repeated. The last batch may be smaller.
    """

    def __init__(
        self,
        x: Tensor | Mapped,
        y: Tensor,
        *,
        batch_size: int,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._x, self._y = (x, y) if seed is not None else (x[rank::world], y[rank::world])
        self._share = math.ceil(len(y) / world) if seed is not None else len(self._y)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch
        self._rank, self._world = rank, world
        self.as_stored = False

    def __len__(self) -> int:
        return math.ceil(self._share / self._batch_size)

    def samples(self, batches: int) -> int:
        """How many examples so many batches have."""
        return min(self._share, batches * self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        x, y, size = self._x, self._y, self._batch_size
        if self._seed is None:
            for start in range(0, len(y), size):
                yield self._given(x[start : start + size]), y[start : start + size]
        else:
            width = x.dtype.itemsize if self.as_stored else torch.float32.itemsize
            many = max(1, GATHERED // (x.shape[1] * width * size)) * size
            for i in torch.split(self._order(self._seed), many):
                picked = self._given(x.index_select(0, i)), y.index_select(0, i)
                yield from zip(*(part.split(size) for part in picked), strict=True)

    def _given(self, x: Tensor) -> Tensor:
        return x if self.as_stored else numbers(x)

    def _order(self, seed: int) -> Tensor:
        order = shuffled(len(self._y), seed=seed, epoch=self._epoch())
        mine = np.resize(order, self._share * self._world)[self._rank :: self._world]
        rows, device = torch.from_numpy(np.ascontiguousarray(mine)), self._y.device
        # Copied without a wait for what the GPU has still to do.
        return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


class SomeBatches(Sized, Iterable[Batch], Protocol):
    """Batches whose number is known."""


@final
class Chunks:
    """Batches in chunks: iterators over `size` batches each, to be used up one after the other.

    With a size of 1 they are the batches themselves. `limit` is how many batches there are to be,
    or the share of them if it is no integer.
    """

    def __init__(self, batches: SomeBatches, size: int, *, limit: float | None = None) -> None:
        self.batches, self.size = batches, size
        whole = len(batches)
        if isinstance(limit, float):
            limit = max(1, int(whole * limit))
        self.total = whole if limit is None else min(whole, int(limit))

    def __len__(self) -> int:
        return math.ceil(self.total / self.size)

    def __iter__(self) -> Iterator[Any]:
        remaining = islice(self.batches, self.total)
        if self.size == 1:
            yield from remaining
            return
        for _ in range(len(self)):
            yield islice(remaining, self.size)


class Data(pl.LightningDataModule, ABC):
    """What a run asks of its data: batches for training and validation, and facts about them.

    `train_targets` and `val` stand for all there are, if they are not. `seen` makes of a batch's
    inputs what the trainer is given.
    """

    dataset: Dataset
    batch_size: int
    mean: Statistic
    std: Statistic
    seen: Callable[[Tensor], Tensor] | None = None

    @property
    @abstractmethod
    def val(self) -> Batch:
        """Validation data."""

    @property
    @abstractmethod
    def train_targets(self) -> Tensor:
        """The targets of the training data."""

    @property
    def val_targets(self) -> Tensor:
        """Those of the validation data."""
        return self.val[1]

    @property
    @abstractmethod
    def n_train(self) -> int:
        """The number of training examples."""

    @property
    @abstractmethod
    def n_val(self) -> int:
        """The number of validation examples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.dataset.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; none where the targets are numbers."""
        return self.dataset.classes

    @property
    def inputs(self) -> int:
        """The number of values in one example."""
        return int(np.prod(self.shape))

    @property
    def outputs(self) -> int:
        """The number of outputs that a network needs: one for two classes, else one a class, or one
        a number that is to be told.
        """
        if self.classes:
            return 1 if len(self.classes) == 2 else len(self.classes)
        return int(np.prod(self.train_targets.shape[1:]))

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Nothing to do: they are there already."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Show inputs as they are to be seen."""
        return batch if self.seen is None else (self.seen(batch[0]), batch[1])


@final
class DataModule(Data):
    """A data set's training part, split by `seed` into training and validation data.

    After `setup("fit")`, `train` and `val` are pairs (x [n, inputs] float32, y as the data set has
    it) on the training device, `rows` says which examples of the data set they are, and `mean` and
    `std` are those of all values of the training data, or lists of those of each of its columns if
    the data set is `by_column`. The test part is not here. `val_size` is a number of
    examples, or a share of them in (0, 1); `train_size` how many of the rest are used, where that
    is not all; `augment` holds the arguments of `Augment`, or is a list for `Transforms`, for
    training batches alone. With `chunk`, training batches come as `Chunks` of so many, for a module
    that loops over them itself, at most `limit` of them; `repeat` has every epoch be the first.

    Raises `UserError` for a size that the data do not allow, or an unusable `augment`.
    """

    rows: tuple[Tensor, Tensor]

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        val_size: float,
        seed: int,
        train_size: int | None = None,
        augment: Mapping[str, float] | Sequence[Callable[[Tensor], Tensor]] | None = None,
        chunk: int | None = None,
        limit: float | None = None,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self._val_size, self._train_size = val_size, train_size
        self._seed = seed
        self._augment = _augment(dataset.shape, augment) if augment else None
        self._chunk, self._limit, self._repeat = chunk, limit, repeat
        self._is_loaded = False
        # As the data set has them, which may be bytes.
        self._train: tuple[Tensor | Mapped, Tensor]
        self._val: Batch

    @property
    def train(self) -> Batch:
        """The training data; inputs that are stored as bytes are made anew."""
        x, y = self._train
        return numbers(x[:]), y

    @property
    def val(self) -> Batch:
        """The validation data, likewise."""
        x, y = self._val
        return numbers(x), y

    @property
    def train_targets(self) -> Tensor:
        """The targets of the training data."""
        return self._train[1]

    @property
    def val_targets(self) -> Tensor:
        """Those of the validation data."""
        return self._val[1]

    @property
    def n_train(self) -> int:
        """The number of training examples."""
        return len(self._train[1])

    @property
    def n_val(self) -> int:
        """The number of validation examples."""
        return len(self._val[1])

    def setup(self, stage: str) -> None:
        """Load and split the data the first time, and bring them to the trainer's device."""
        if not self._is_loaded:
            self._load()
            self._is_loaded = True
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self._train = (self._train[0].to(device), self._train[1].to(device))
        self._val = (self._val[0].to(device), self._val[1].to(device))

    def release(self) -> None:
        """Let go of the inputs, where their number alone is still of use."""
        self._train = (torch.empty(0, self.inputs), self._train[1])

    def _load(self) -> None:
        x, y = self.dataset.train()
        strata = self.dataset.strata(x, y)
        rest, held_out = split(strata, held_out=self._count_val(len(y)), seed=self._seed)
        if self._train_size is not None:
            if self._train_size > len(rest):
                raise UserError(
                    f"data.train_size={self._train_size}: must be at most {len(rest)}, the number "
                    "of examples that are not held out"
                )
            _, drawn = split(strata[rest], held_out=self._train_size, seed=self._seed)
            rest = rest[drawn]
        if not 1 <= self.batch_size <= len(rest):
            raise UserError(
                f"data.batch_size={self.batch_size}: must be 1 to {len(rest)}, "
                "the number of training examples"
            )
        every_y = torch.from_numpy(y)
        stay, out = torch.from_numpy(rest), torch.from_numpy(held_out)
        self.rows = (stay, out)
        stays = isinstance(x, np.memmap) and x.nbytes >= MAPPED
        kept, held = (Mapped(x, r) if stays else torch.from_numpy(x)[r] for r in self.rows)
        self._train, self._val = (kept, every_y[stay]), (held[:], every_y[out])
        self.mean, self.std = statistics(kept, by_column=self.dataset.by_column)

    def _count_val(self, n: int) -> int:
        size = self._val_size
        count = round(size * n) if 0 < size < 1 else size
        if not (1 <= count < n and count == int(count)):
            raise UserError(
                f"data.val_size={size}: must be a number of examples from 1 to {n - 1}, or a share "
                f"in (0, 1) that comes to that, of the {n} examples for training and validation"
            )
        return int(count)

    def train_dataloader(self) -> Batches | Chunks:
        """The training batches of this process, in a new order every epoch."""
        rank, world = self._share()
        batches = Batches(
            *self._train,
            batch_size=self.batch_size,
            seed=self._seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer and not self._repeat else 0,
            rank=rank,
            world=world,
        )
        return Chunks(batches, self._chunk, limit=self._limit) if self._chunk else batches

    def val_dataloader(self) -> Batches:
        """The validation batches of this process, in order."""
        rank, world = self._share()
        return Batches(*self._val, batch_size=VAL_BATCH, rank=rank, world=world)

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment training batches, and show inputs as they are to be seen."""
        if self._augment and self.trainer and self.trainer.training:
            many = (self._chunk or 1) > 1
            batch = map(self._augmented, batch) if many else self._augmented(batch)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def _augmented(self, batch: Batch) -> Batch:
        assert self._augment is not None
        return self._augment(numbers(batch[0])), batch[1]  # which may be given as stored


def statistics(x: Tensor | Mapped, *, by_column: bool) -> tuple[Statistic, Statistic]:
    """Mean and standard deviation of x [n, d], or of each of its columns; of constants it is 1."""
    pieces = (x[i : i + CHUNK] for i in range(0, len(x), CHUNK))
    if by_column:
        means, squares = torch.zeros(2, x.shape[1], dtype=torch.float64)
        for k, piece in enumerate(pieces):  # Chan et al. 1979: what two parts say of their union
            values, seen = numbers(piece).double(), k * CHUNK
            away, n = values.mean(0) - means, len(values)
            squares += values.var(0, correction=0) * n + away**2 * (seen * n / (seen + n))
            means += away * (n / (seen + n))
        stds = (squares / len(x)).sqrt()
        return [_rounded(v) for v in means], [_rounded(v) or 1.0 for v in stds]
    if x.dtype == torch.uint8:
        n, total, squares = len(x) * x.shape[1], 0, 0  # whole numbers: exact
        for part in (part for piece in pieces for part in piece.split(IN_CACHE)):
            values = part.flatten().double()
            total, squares = total + int(values.sum()), squares + int(values @ values)
        middle, spread = total / n / 255, (n * squares - total**2) ** 0.5 / n / 255
        return _rounded(np.float32(middle)), _rounded(np.float32(spread)) or 1.0
    std, mean = torch.std_mean(numbers(x[:]), correction=0)
    return _rounded(mean), _rounded(std) or 1.0


def _rounded(value: Tensor | np.float32) -> float:
    """Six digits: more would depend on the order of summation, and so on the threads."""
    return float(f"{float(value):.6g}")


def _augment(
    shape: tuple[int, ...], options: Mapping[str, Any] | Sequence[Any]
) -> Augment | Transforms:
    if len(shape) < 2:
        raise UserError(f"data.augment={options}: must be null for data that are not images")
    if isinstance(options, str) or not isinstance(options, Mapping | Sequence):
        raise UserError(f"data.augment={options}: must be null, a mapping or a list of transforms")
    if not isinstance(options, Mapping):
        return Transforms(shape, options)
    keys = [field.name for field in dataclasses.fields(Augment) if field.kw_only]
    for key in options:
        if key not in keys:
            hint = did_you_mean(key, keys)
            raise UserError(f"data.augment.{key}: must be one of {', '.join(keys)}{hint}")
    return Augment((shape[-2], shape[-1]), **options)
