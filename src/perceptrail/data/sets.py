"""The data sets that `data=` names: a function each, whose arguments are its keys in the config."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from perceptrail.data import synthetic
from perceptrail.data.dataset import Dataset, Part, of_arrays, split
from perceptrail.data.idx import FILES, NAMES, md5_of, read
from perceptrail.data.targets import by_class
from perceptrail.errors import UserError

DIGITS = tuple("0123456789")
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
TABLES = ("breast_cancer", "diabetes", "iris", "wine")


def mnist(*, dir: str | Path, mirrors: Sequence[str] = ()) -> Dataset:  # noqa: A002
    """LeCun et al. 1998: 60,000 + 10,000 handwritten digits, 28x28, fetched into `dir`."""
    return _known("mnist", dir, mirrors, DIGITS)


def fashion_mnist(*, dir: str | Path, mirrors: Sequence[str] = ()) -> Dataset:  # noqa: A002
    """Xiao et al. 2017, arXiv:1708.07747: 60,000 + 10,000 pieces of clothing, 28x28."""
    return _known("fashion_mnist", dir, mirrors, CLOTHES)


def idx(*, dir: str | Path, name: str = "idx") -> Dataset:  # noqa: A002
    """Any folder with four files in MNIST's format and under their names, raw or `.gz`.

    Their checksums are unknown, so that they are taken as they are; the digest records them.
    """
    folder = Path(dir).expanduser()
    paths = [_present(folder, file) for file in NAMES]
    images, labels = read(paths[0]), read(paths[1])
    return _from_idx(
        name,
        paths,
        shape=images.shape[1:],
        classes=tuple(map(str, range(int(labels.max(initial=0)) + 1))),
        sums=[md5_of(path) for path in paths],
    )


def digits(*, test_size: float = 0.2) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8.

    They have no official test part; a share of `test_size`, the same for every seed, is held out.
    """
    from sklearn.datasets import load_digits  # seconds

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    rest, held_out = split(y, held_out=round(test_size * len(y)), seed=0)
    return of_arrays(
        "digits",
        lambda: (x[rest], y[rest]),
        lambda: (x[held_out], y[held_out]),
        shape=(8, 8),
        classes=DIGITS,
        source="sklearn.datasets.load_digits",
    )


def tabular(*, table: str, test_size: float = 0.2, kind: str | None = None) -> Dataset:
    """One of scikit-learn's small `TABLES`, its columns standardised by the training part.

    Of diabetes, whose target is a number, the question is whether it is above the median, unless
    the `kind` of targets is to be numbers. As with `digits`, a share of `test_size`, the same for
    every seed, is held out.
    """
    from sklearn import datasets  # seconds

    bunch = getattr(datasets, f"load_{table}")()
    x, y, classes = bunch.data, bunch.target, bunch.get("target_names", ("lower", "higher"))
    if kind == "numbers" and table != "diabetes":
        raise UserError(f"data.table={table}: has classes as targets; diabetes has numbers")
    if kind == "numbers":
        y, strata = y.astype(np.float32), np.zeros(len(y), np.int64)
        facts: dict[str, Any] = {"targets": ("progression",)}
    else:
        y = (y > np.median(y) if table == "diabetes" else y).astype(np.int64)
        strata, facts = y, {"classes": tuple(map(str, classes)), "strata": by_class}
    rest, held_out = split(strata, held_out=round(test_size * len(y)), seed=0)
    x = ((x - x[rest].mean(0)) / x[rest].std(0)).astype(np.float32)
    return of_arrays(
        table,
        lambda: (x[rest], y[rest]),
        lambda: (x[held_out], y[held_out]),
        shape=x.shape[1:],
        source=f"sklearn.datasets.load_{table}",
        **facts,
    )


def xor(*, points: int, bits: int, noise: float, seed: int) -> Dataset:
    """`synthetic.xor`, split so that every corner keeps its share."""
    draw = partial(synthetic.xor, points, bits=bits, noise=noise)
    weights = 1 << np.arange(bits)
    return _drawn(draw, seed=seed, dimensions=bits, strata=lambda x, _: (x > 0) @ weights)


def circles(*, points: int, noise: float, factor: float, seed: int) -> Dataset:
    """`synthetic.circles`."""
    return _drawn(partial(synthetic.circles, points, noise=noise, factor=factor), seed=seed)


def moons(*, points: int, noise: float, seed: int) -> Dataset:
    """`synthetic.moons`."""
    return _drawn(partial(synthetic.moons, points, noise=noise), seed=seed)


def spirals(*, points: int, noise: float, arms: int, turns: float, seed: int) -> Dataset:
    """`synthetic.spirals`."""
    draw = partial(synthetic.spirals, points, arms=arms, turns=turns, noise=noise)
    return _drawn(draw, seed=seed, classes=arms)


def _known(
    name: str, folder: str | Path, mirrors: Sequence[str], classes: tuple[str, ...]
) -> Dataset:
    from perceptrail.data.fetch import fetch

    home = fetch(name, folder, mirrors=mirrors)
    paths = [home / file for file in NAMES]
    sums = [file.md5 for file in FILES[name]]
    return _from_idx(name, paths, shape=(28, 28), classes=classes, sums=sums)


def _present(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(
        f"data.dir={folder}: no {name} there, raw or .gz; needed are {', '.join(NAMES)}"
    )


def _from_idx(
    name: str,
    paths: Sequence[Path],
    *,
    shape: tuple[int, ...],
    classes: tuple[str, ...],
    sums: Sequence[str],
) -> Dataset:
    return Dataset(
        name=name,
        shape=shape,
        classes=classes,
        digest=hashlib.sha256(" ".join(sums).encode()).hexdigest(),
        source=str(paths[0].parent.resolve()),
        train=partial(_read_part, *paths[:2]),
        test=partial(_read_part, *paths[2:]),
    )


def _read_part(images: Path, labels: Path) -> Part:
    x, y = read(images), read(labels)
    if y.ndim != 1 or len(x) != len(y):
        raise UserError(f"{images} has shape {x.shape}, which does not go with {labels}: {y.shape}")
    return x.reshape(len(x), -1), y.astype(np.int64)


def _drawn(
    draw: "partial[Part]", *, seed: int, dimensions: int = 2, classes: int = 2, **options: Any
) -> Dataset:
    name = draw.func.__name__
    arguments = ", ".join(f"{key}={value}" for key, value in draw.keywords.items())
    return of_arrays(
        name,
        partial(draw, seed=(seed, 1)),
        partial(draw, seed=(seed, 2)),
        shape=(dimensions,),
        classes=tuple(map(str, range(classes))),
        source=f"{draw.func.__module__}.{name}({draw.args[0]}, {arguments}, seed={seed})",
        **options,
    )
