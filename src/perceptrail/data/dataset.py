"""What a data set is, of whatever kind, and how its examples are divided."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptrail.errors import UserError

Part = tuple[NDArray[Any], NDArray[Any]]


def _one_stratum(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    return np.zeros(len(y), np.int64)


@dataclass(frozen=True)
class Dataset:
    """A problem to learn: what is known of it, and how to get its two parts.

    A part is x [n, prod(shape)], a row of values an example, and y. `shape` is that of one example:
    (d,) of a row of numbers, (height, width) of a grey image, (3, height, width) of one in colour.
    x is float32 (images in [0, 1]), or bytes, uint8, that stand for n / 255 and may lie in a memory
    map: `as_float` makes numbers of them.

    Where `classes` are named, y is int64 [n], their numbers. Where there are none, y is float32,
    [n] of one number or [n, outputs] of several, and `targets` names them; labels of which several
    may hold at once are such numbers too, 0 and 1.

    `by_column` says that every value of an example is a quantity of its own, to be standardised by
    itself (tables); otherwise all are of one kind (pixels). `columns` makes rows x of a table as
    its user has it (pandas), and is stored with a model, so that it can be asked about a CSV.

    `digest` is a hexadecimal SHA-256 that stands for the bytes of both parts, `source` where they
    came from. `strata` numbers the examples of a part by what a split should keep in proportion.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str
    source: str
    train: Callable[[], Part]
    test: Callable[[], Part]
    strata: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.int64]] = _one_stratum
    targets: tuple[str, ...] = ()
    by_column: bool = False
    columns: Any = None  # a data.table.Columns, where x comes from a table
    pictures: Mapping[str, Any] | None = None  # how `images.read_image` reads such, of files
    streamed: Any = (
        None  # the LightningDataModule whose loaders have all, where parts have the first
    )


def of_arrays(
    name: str,
    train: Callable[[], Part],
    test: Callable[[], Part],
    *,
    classes: tuple[str, ...] = (),
    digested: Part | None = None,
    **facts: Any,
) -> Dataset:
    """A data set whose parts are at hand, with the digest of their bytes, or of some of them."""
    digest = hashlib.sha256()
    for array in (*train(), *test()) if digested is None else digested:
        digest.update(np.ascontiguousarray(array).data)
    return Dataset(
        name=name, classes=classes, digest=digest.hexdigest(), train=train, test=test, **facts
    )


def as_float(x: NDArray[Any]) -> NDArray[np.float32]:
    """Values as float32: bytes as n / 255, others as they are."""
    if x.dtype == np.uint8:
        numbers: NDArray[np.float32] = np.divide(x, 255, dtype=np.float32)
        return numbers
    return np.asarray(x, np.float32)


def tested(share: float, examples: int) -> int:
    """How many of the examples are to be tested on. Raises `UserError` for none, or all."""
    count = round(share * examples)
    if not 0 < count < examples:
        raise UserError(
            f"data.test={share}: leaves {count} of {examples} examples to test on; "
            "there must be some for both parts"
        )
    return count


def split(
    strata: NDArray[np.int64], *, held_out: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the examples that stay and of the `held_out` ones, both ascending.

    Drawn by `seed`, with every stratum in proportion to within one example.
    """
    n = len(strata)
    order = np.random.default_rng(seed).permutation(n)
    order = order[np.argsort(strata[order], kind="stable")]
    chosen = np.zeros(n, dtype=bool)
    chosen[order[np.arange(held_out) * n // held_out]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
