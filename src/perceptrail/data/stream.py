"""Data that do not stay in memory: every batch comes anew from a DataLoader, with workers."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import numpy as np
import psutil
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from perceptrail.data.arrays import TEST
from perceptrail.data.dataset import Dataset, Part, of_arrays, split
from perceptrail.data.module import Batch, Chunks, Data, numbers, statistics
from perceptrail.errors import UserError

log = logging.getLogger(__name__)

HELD = 4096  # examples that stand for all: in statistics, in figures
HELD_BYTES = 2**28
RESIDENT = 0.5  # share of the memory that is free, which data brought there may take


def fits(examples: Any) -> bool:
    """Whether a torch Dataset can be brought into memory."""
    one = np.asarray(examples[0][0]).nbytes
    return bool(one * len(examples) <= RESIDENT * psutil.virtual_memory().available)


@final
class Examples(pl.LightningDataModule):
    """Loaders of torch Datasets; a validation part is held out by `seed`, a test part always is."""

    def __init__(
        self, train: TorchDataset[Any], test: TorchDataset[Any] | None, *, workers: int | None
    ) -> None:
        super().__init__()
        self._parts: dict[str, TorchDataset[Any]] = {"train": train}
        self.classes = getattr(train, "classes", None)
        if test is not None:
            self._parts["test"] = test
        else:
            self._divide("test", TEST, seed=0)
        self._batch_size = 128
        self._workers = min(os.cpu_count() or 1, 8) if workers is None else workers

    def use(self, *, batch_size: int, val_size: float, seed: int) -> None:
        """Hold the validation part out: a number of examples, or a share in (0, 1)."""
        self._divide("val", val_size, seed=seed)
        self._batch_size = batch_size

    def _divide(self, name: str, size: float, *, seed: int) -> None:
        whole: Any = self._parts["train"]
        n = len(whole)
        count = round(size * n) if 0 < size < 1 else int(size)
        if not 1 <= count < n:
            raise UserError(
                f"data.{name}_size={size}: must be less than the {n} examples there are"
            )
        for part, rows in zip(
            ("train", name), split(np.zeros(n, np.int64), held_out=count, seed=seed), strict=True
        ):
            self._parts[part] = Subset(whole, rows.tolist())

    def _loader(self, part: str) -> DataLoader[Any]:
        return DataLoader(
            self._parts[part],
            batch_size=self._batch_size,
            shuffle=part == "train",
            num_workers=self._workers,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """In a new order every epoch."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return self._loader("test")


@final
class Streamed:
    """A loader's batches as a network takes them: x [n, values], float32, and y, on `device`.

    Their order, and what workers draw at random, follows from `seed` and `epoch()` alone.
    Without a number of `classes`, which is 0 of numbers, y is left as it comes. Raises `UserError`
    for a batch that is not (x, y), and for a class that is not known.
    """

    def __init__(
        self,
        source: pl.LightningDataModule,
        part: str,
        *,
        classes: int | None = None,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self._source, self._classes, self._seed, self._epoch = source, classes, seed, epoch
        self.device = torch.device("cpu")
        self.shape: tuple[int, ...] = ()  # of an example, once there was one
        self._loader: Any = getattr(source, f"{part}_dataloader")()
        self._said = f"data._target_: the {part}_dataloader of {type(source).__name__}"
        try:
            self._length = len(self._loader)
        except TypeError as error:
            raise UserError(f"{self._said} must make a loader that has a length") from error
        self._passed = 0

    def __len__(self) -> int:
        return self._length

    @property
    def examples(self) -> int:
        """How many examples a pass has."""
        whole: Any = getattr(self._loader, "dataset", None)
        return len(whole) if hasattr(whole, "__len__") else sum(len(y) for _, y in self)

    def samples(self, batches: int) -> int:
        """How many examples the last pass had."""
        return self._passed

    def __iter__(self) -> Iterator[Batch]:
        self._passed = 0
        with torch.random.fork_rng(devices=[]):  # a loader draws its order, its workers their seeds
            source = np.random.SeedSequence([self._seed, self._epoch() + 1])
            torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))
            batches = iter(self._loader)
            first = next(batches, None)
        if first is not None:
            yield self._taken(first)
            yield from map(self._taken, batches)

    def _taken(self, batch: Any) -> Batch:
        batch = self._source.on_after_batch_transfer(batch, 0)
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UserError(f"{self._said} must give batches (x, y), not {type(batch).__name__}")
        x, y = map(torch.as_tensor, batch)
        self.shape = tuple(x.shape[1:])
        if self._classes and not 0 <= int(y.min()) <= int(y.max()) < self._classes:
            raise UserError(
                f"{self._said} must give labels from 0 to {self._classes - 1}, not "
                f"{int(y.max() if y.max() >= self._classes else y.min())}; an attribute `classes` "
                "of the data names those that there are"
            )
        self._passed += len(y)
        if self._classes is not None:
            y = y.long() if self._classes else y.float()
        return numbers(x.to(self.device)).flatten(1), y.to(self.device)


def held(batches: Iterable[tuple[Any, Any]]) -> Iterator[Part]:
    """The first `HELD` examples as one part, or so, then each batch of the rest."""
    few: list[Part] = []
    n, rest = 0, iter(batches)
    for x, y in rest:
        few.append((x.cpu().numpy(), y.cpu().numpy()))
        n += len(y)
        if n >= HELD or n * few[0][0][0].nbytes >= HELD_BYTES:
            break
    yield np.concatenate([x for x, _ in few]), np.concatenate([y for _, y in few])
    yield from ((x.cpu().numpy(), y.cpu().numpy()) for x, y in rest)


def source_of(
    made: Any, *, wanted: bool | None, workers: int | None, said: str
) -> pl.LightningDataModule | None:
    """What streams of that which a function of one's own has returned; None if it need not.

    A LightningDataModule always does; a torch Dataset, or two of them, the second for the test, if
    it is `wanted`, or where they do not fit in memory. Raises `UserError` for what cannot.
    """
    if isinstance(made, pl.LightningDataModule):
        return made
    parts = list(made) if isinstance(made, tuple | list) else [made]
    if not all(isinstance(part, TorchDataset) for part in parts) or len(parts) > 2:
        if wanted:
            raise UserError(
                f"data.stream=true: must be null, since {said} returns neither torch Datasets nor "
                "a LightningDataModule"
            )
        return None
    for part in parts:
        if not hasattr(part, "__len__"):
            raise UserError(
                f"{said}: must return Datasets that have a length, or a LightningDataModule"
            )
    if not wanted and (wanted is False or fits(parts[0])):
        return None
    return Examples(parts[0], parts[1] if len(parts) == 2 else None, workers=workers)


def described(source: pl.LightningDataModule, *, name: str, said: str) -> Dataset:
    """The data set that a LightningDataModule has loaders of.

    Its classes are those of its attribute `classes`; else whole
    numbers from 0 on, as far as they occur among the first examples, which stand for all.
    """
    source.prepare_data()
    source.setup("fit")
    batches = Streamed(source, "train")
    x, y = next(held(batches))
    if not np.isfinite(x).all():
        raise UserError(f"{said}: x must be finite; it holds NaN or infinity")
    shape = batches.shape[1:] if batches.shape[:1] == (1,) else batches.shape
    facts: dict[str, Any] = {"targets": ("y",)}
    if y.ndim > 1:
        facts = {"targets": tuple(f"y{k}" for k in range(y.shape[1]))}
    elif y.dtype.kind != "f":
        named = getattr(source, "classes", None) or range(int(y.max()) + 1)
        facts = {"classes": tuple(map(str, named))}
    part = x, y.astype(np.int64 if "classes" in facts else np.float32)
    return of_arrays(
        name,
        lambda: part,
        lambda: next(tested(source, classes=len(facts.get("classes", ())))),
        shape=shape,
        source=said,
        by_column=len(shape) == 1,
        streamed=source,
        digested=part,
        **facts,
    )


def tested(source: pl.LightningDataModule, *, classes: int) -> Iterator[Part]:
    """The test part: the first `HELD` examples, or so, then each batch of the rest."""
    source.setup("test")
    return held(Streamed(source, "test", classes=classes))


@final
class Stream(Data):
    """What `DataModule` is, of a data set whose batches stream from a DataLoader.

    `mean` and `std` are those of the examples that stand for all; of a LightningDataModule of one's
    own, whose transforms are its own, 0 and 1. `val` are the first validation examples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        val_size: float,
        seed: int,
        train_size: int | None = None,
        augment: Any = None,
        chunk: int | None = None,
        limit: float | None = None,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        for key, value in {"train_size": train_size, "augment": augment}.items():
            if value is not None:
                raise UserError(f"data.{key}={value}: must be null for data that stream")
        self.dataset, self.batch_size, self._seed = dataset, batch_size, seed
        self._chunk, self._limit, self._repeat = chunk, limit, repeat
        self._source: pl.LightningDataModule = dataset.streamed
        self.mean, self.std = 0.0, 1.0
        if isinstance(self._source, Examples):
            self._source.use(batch_size=batch_size, val_size=val_size, seed=seed)
            x = torch.from_numpy(dataset.train()[0])
            self.mean, self.std = statistics(x, by_column=dataset.by_column)
        self._loaders: dict[str, Streamed] = {}

    @property
    def val(self) -> Batch:
        """The first validation examples."""
        return self._val

    @property
    def train_targets(self) -> Tensor:
        """Those of the examples that stand for all."""
        return torch.from_numpy(self.dataset.train()[1])

    def setup(self, stage: str) -> None:
        """Make the loaders, the first time, and bring their batches to the trainer's device."""
        if not self._loaders:
            for part in ("train", "val"):
                self._loaders[part] = Streamed(
                    *(self._source, part),
                    classes=len(self.classes),
                    seed=self._seed,
                    epoch=self._epoch,
                )
            x, y = next(held(self._loaders["val"]))
            self._val = torch.from_numpy(x), torch.from_numpy(y)
            log.info("%s: examples come from their loader, batch by batch", self.dataset.name)
        if self.trainer is not None:
            if self.trainer.world_size > 1:
                raise UserError("trainer.devices: must be 1 for data that stream")
            for loader in self._loaders.values():
                loader.device = self.trainer.strategy.root_device
            self._source.trainer = self.trainer

    @property
    def n_train(self) -> int:
        """The number of training examples."""
        return self._loaders["train"].examples

    @property
    def n_val(self) -> int:
        """The number of validation examples."""
        return self._loaders["val"].examples

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer and not self._repeat else 0

    def train_dataloader(self) -> Streamed | Chunks:
        """The training batches, drawn anew every epoch."""
        batches = self._loaders["train"]
        return Chunks(batches, self._chunk, limit=self._limit) if self._chunk else batches

    def val_dataloader(self) -> Streamed:
        """The validation batches."""
        return self._loaders["val"]
