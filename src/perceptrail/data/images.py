"""Pictures of one's own and torchvision's, as bytes: a folder for each class, or a set by name."""

import hashlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from perceptrail.data.dataset import Dataset, Part, of_arrays, split, tested
from perceptrail.data.image import FORMATS
from perceptrail.data.targets import by_class, check_seen, encode
from perceptrail.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

MODES: Mapping[str, str] = {"grey": "L", "colour": "RGB"}
# What torchvision's sets take for the choice of a part, in the order in which it is looked for.
PARTS: Mapping[str, tuple[Any, ...]] = {"train": (True, False), "split": ("train", "test")}


def folder(
    *,
    dir: str | Path,  # noqa: A002
    size: int | None = None,
    mode: str = "colour",
    test: float | str = 0.2,
) -> Dataset:
    """A folder of images with a folder for each class, as torchvision's ImageFolder has them.

    Images are `grey` or in `colour`; with a `size`, the shorter side is scaled to it and the middle
    taken, else all must be of one size. `test` is a folder like it, or the share held out of this
    one, the same images for every seed. The digest is that of the files' bytes.

    Raises `UserError` for an empty class, images of unequal size, and what is no image.
    """
    home = Path(dir).expanduser()
    files, classes = _images_of(home, key="data.dir")
    labels = np.array([classes.index(file.parent.name) for file in files])
    if isinstance(test, float):
        rest, held_out = split(labels, held_out=tested(test, len(labels)), seed=0)
        parts = [([files[i] for i in rows], labels[rows]) for rows in (rest, held_out)]
    else:
        others, theirs = _images_of(Path(test).expanduser(), key="data.test")
        check_seen(set(theirs) - set(classes), said=f"data.test={test}")
        numbers = np.array([classes.index(file.parent.name) for file in others])
        parts = [(files, labels), (others, numbers)]
    shape = read_image(files[0], size=size, mode=mode).shape
    digest = hashlib.sha256()
    for part, _ in parts:
        for file in part:
            digest.update(hashlib.sha256(file.read_bytes()).digest())

    @cache
    def load(number: int) -> Part:
        paths, y = parts[number]
        x = np.empty((len(paths), *shape), np.uint8)
        for row, path in zip(x, paths, strict=True):
            image = read_image(path, size=size, mode=mode)
            if image.shape != shape:
                raise UserError(
                    f"data.size=null: must be the side of a square for images of unequal size; "
                    f"{files[0]} is {_sides(shape)}, {path} is {_sides(image.shape)}"
                )
            row[:] = image
        return x.reshape(len(x), -1), y.astype(np.int64)

    return Dataset(
        name=home.name,
        shape=shape,
        classes=tuple(classes),
        digest=digest.hexdigest(),
        source=str(home.resolve()),
        train=lambda: load(0),
        test=lambda: load(1),
        strata=by_class,
        pictures={"size": size, "mode": mode},
    )


def _images_of(home: Path, *, key: str) -> tuple[list[Path], list[str]]:
    """The image files below a folder, by class, and the classes."""
    suffixes = sum(FORMATS.values(), ())
    if not home.is_dir():
        raise UserError(f"{key}={home}: there is no such folder")
    classes = sorted(entry.name for entry in home.iterdir() if entry.is_dir())
    found: list[Path] = []
    for name in classes:
        inside = sorted(f for f in (home / name).iterdir() if f.suffix.lower() in suffixes)
        if not inside:
            raise UserError(
                f"{key}={home}: no image in the folder of class {name} ({', '.join(suffixes)})"
            )
        found += inside
    if len(classes) < 2:
        raise UserError(f"{key}={home}: must hold a folder for each class, of two at least")
    return found, classes


def read_image(path: Path, *, size: int | None, mode: str) -> NDArray[np.uint8]:
    """Bytes [height, width] of an image in grey, [3, height, width] in colour."""
    try:
        with Image.open(path, formats=list(FORMATS)) as file:
            image = ImageOps.exif_transpose(file).convert(MODES[mode])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that can be read ({error})") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return _channels_first(np.asarray(image))


def _channels_first(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.moveaxis(x, -1, -3) if x.shape[-1] == 3 and x.ndim > 2 else x


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}x{shape[-1]}"


def torchvision(
    *,
    name: str,
    dir: str | Path,  # noqa: A002
    size: int | None = None,
    download: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """A set of torchvision by its name, from `dir`, where it is fetched to if it is not there.

    Its official test part is the test part. `options` are further arguments of its class. With a
    `size`, images are scaled as by `folder`. Raises `UserError` if there is no such set, or it
    cannot be had, or its images are of unequal size.
    """
    from torchvision import datasets

    if name not in datasets.__all__:
        hint = did_you_mean(name, datasets.__all__)
        raise UserError(f"data.name={name}: must be a set of torchvision.datasets{hint}")
    kind = getattr(datasets, name)
    known = inspect.signature(kind).parameters
    further = dict(options or {})
    by = next((key for key in PARTS if key in known and key not in further), None)
    if name == "EMNIST":  # whose split is not that of the parts
        by, further = "train", {"split": "balanced"} | further
    if by is None:
        raise UserError(f"data.name={name}: has no training and test part to choose from")
    fetching = {"download": download} if "download" in known or name == "EMNIST" else {}
    sets = []
    for part in PARTS[by]:
        try:
            sets.append(kind(Path(dir).expanduser(), **{by: part}, **fetching, **further))
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"data.name={name}, data.dir={dir}: {reason}") from error
    (x, y), (x_test, y_test) = (_pixels(made, name=name, size=size) for made in sets)
    y, y_test, facts = encode(
        y, y_test, kind="classes", names=(), said=f"data.name={name}: its labels"
    )
    names = getattr(sets[0], "classes", None)
    if names is not None and len(names) == len(facts["classes"]):
        facts["classes"] = tuple(map(str, names))
    return of_arrays(
        name,
        lambda: (x.reshape(len(x), -1), y),
        lambda: (x_test.reshape(len(x_test), -1), y_test),
        shape=x.shape[1:],
        source=str(Path(dir).expanduser().resolve()),
        pictures={"size": size or x.shape[-1], "mode": "grey" if x.ndim == 3 else "colour"},
        **facts,
    )


def _pixels(made: Any, *, name: str, size: int | None) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Bytes and labels of all images of a set: as it holds them, else one by one."""
    data = getattr(made, "data", None)
    labels = getattr(made, "targets", getattr(made, "labels", None))
    if size is None and labels is not None and getattr(data, "dtype", None) is not None:
        x = np.asarray(data)
        return np.ascontiguousarray(_channels_first(x)), np.asarray(labels)
    images, y = _seen(made, size=size)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        sizes = " and ".join(map(_sides, sorted(shapes)[:2]))
        raise UserError(f"data.size=null: must be given for {name}, whose images are {sizes}")
    return np.stack(images), y


def _seen(made: Iterable[Any], *, size: int | None) -> tuple[list[NDArray[np.uint8]], NDArray[Any]]:
    images, y = [], []
    for picture, label in made:
        mode = "L" if picture.mode in ("L", "1") else "RGB"
        image = picture.convert(mode)
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        images.append(_channels_first(np.asarray(image)))
        y.append(int(label))
    return images, np.array(y)
