"""What every contender is given: a network, data, an optimizer, and when to stop."""

import dataclasses
import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "mnist"
VALIDATION, INPUTS, CLASSES, SEED = 5000, 784, 10, 0
ALL = 54_784  # of the 55,000 images that are left, whole batches of 128 and of 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A network of ReLU units, 784-`hidden`-10, trained by Adam at a constant rate.

    That much all contenders have in common; `dropout` only those that are built on PyTorch.
    `images` is a multiple of `batch`, for a jitted scan takes whole batches alone. The training
    ends after `epochs`, after the first epoch with the validation accuracy `target`, or the first
    that ends `seconds` after the start of the process.
    """

    hidden: tuple[int, ...] = (256, 128)
    dropout: float = 0.0
    images: int = ALL
    batch: int = 128
    rate: float = 1e-3
    epochs: int = 2
    target: float = math.inf
    seconds: float = math.inf

    @property
    def name(self) -> str:
        """The layers' widths, as 784-128-10; the batch where it is not the usual one."""
        widths = "-".join(map(str, (INPUTS, *self.hidden, CLASSES)))
        return widths if self.batch == Task.batch else f"{widths}, batch {self.batch}"

    @property
    def flops(self) -> int:
        """Floating-point operations a sample: three products of 2 a weight, but no gradient of
        the inputs.
        """
        products = [a * b for a, b in pairwise((INPUTS, *self.hidden, CLASSES))]
        return 6 * sum(products) - 2 * products[0]

    def dumps(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, line: str) -> "Task":
        """What `dumps` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "hidden": tuple(fields["hidden"])})


class Examples(NamedTuple):
    """Standardised images [n, 784] float32 and labels [n] int64, to train on and to validate."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    val_x: NDArray[np.float32]
    val_y: NDArray[np.int64]


@cache
def indices(images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of MNIST's 60,000 to train on and to validate with: those that perceptrail takes."""
    from perceptrail.data.dataset import split

    rest, held_out = split(np.zeros(60_000, np.int64), held_out=VALIDATION, seed=SEED)
    _, drawn = split(np.zeros(len(rest), np.int64), held_out=images, seed=SEED)
    return rest[drawn], held_out


@cache
def examples(images: int) -> Examples:
    """The examples of `indices`, as arrays."""
    from perceptrail.data.dataset import as_float
    from perceptrail.data.sets import mnist

    x, y = mnist(dir=DATA).train()
    x = as_float(x)
    train, held_out = indices(images)
    mean, std = x[train].mean(), x[train].std()
    return Examples((x[train] - mean) / std, y[train], (x[held_out] - mean) / std, y[held_out])
