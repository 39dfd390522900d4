"""Arrays of one's own: from a file, or from a function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptrail.data.dataset import Dataset, of_arrays, split, tested
from perceptrail.data.targets import encode
from perceptrail.errors import UserError

Arrays = Sequence[NDArray[Any]]  # x, y, and those of the test part if there is one
CHUNK = 2**14  # examples looked at together
TEST = 0.2  # share held out where there is none


def arrays(
    *, path: str, y: str | None = None, test: float | str = TEST, kind: str | None = None
) -> Dataset:
    """The arrays `x` and `y` in an `.npz` or safetensors file; or x in one `.npy`, y in another.

    x is [n, ...]: rows, images [n, height, width] or [n, 3, height, width]. Bytes stand for n /
    255. y is [n] whole numbers or texts, the classes, or floating-point numbers. `test` is a file
    like it, or the share held out, the same examples for every seed; `x_test` and `y_test` in the
    file come before it.
    """
    found = _read(path, y, key="data.path")
    if "x_test" not in found and isinstance(test, str):
        others = _read(test, None, key="data.test")
        found |= {"x_test": others["x"], "y_test": others["y"]}
    parts = [found[name] for name in ("x", "y", "x_test", "y_test") if name in found]
    return of_parts(
        parts,
        name=Path(path).stem,
        source=str(Path(path).expanduser().resolve()),
        said=f"data.path={path}",
        test=test if isinstance(test, float) else TEST,
        kind=kind,
    )


def _read(path: str, y: str | None, *, key: str) -> dict[str, NDArray[Any]]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file")
    try:
        if file.suffix == ".npy":
            if y is None:
                raise UserError("data.y=null: must be the file of the targets, for x in an .npy")
            labels = Path(y).expanduser()
            return {"x": np.load(file, mmap_mode="r"), "y": np.load(labels)}
        if file.suffix == ".npz":
            with np.load(file) as stored:
                found = dict(stored)
        elif file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = load_file(file)
        else:
            raise UserError(f"{key}={path}: must end in .npz, .npy or .safetensors")
    except UserError:
        raise
    except Exception as error:  # safetensors has an Exception of its own, zip files another
        raise UserError(f"{key}={path}: cannot be read ({error})") from error
    if not {"x", "y"} <= found.keys():
        raise UserError(f"{key}={path}: must hold x and y; it holds {', '.join(found)}")
    return found


def of_parts(
    parts: Arrays, *, name: str, source: str, said: str, test: float = TEST, kind: str | None = None
) -> Dataset:
    """A data set of arrays x, y, and maybe x and y of the test part; else a share is held out.

    Raises `UserError`, which names what is `said`, for arrays that do not go together, and numbers
    that are not finite.
    """
    if len(parts) not in (2, 4):
        raise UserError(f"{said}: must be x and y, and maybe the test part's; not {len(parts)}")
    values = [part if isinstance(part, np.memmap) else np.asarray(part) for part in parts]
    for x, y, part in zip(values[::2], values[1::2], ("", " (test)"), strict=False):
        if x.ndim < 2 or len(x) != len(y):
            raise UserError(
                f"{said}: x{part} must be [n, ...] and y [n]; they are {x.shape} and {y.shape}"
            )
        _check_finite(x, said=f"{said}: x{part}")
    if len(values) == 2:
        x, y = values
        classed = kind == "classes" or (kind is None and y.ndim == 1 and y.dtype.kind != "f")
        strata = np.unique(y, return_inverse=True)[1] if classed else np.zeros(len(y), np.int64)
        kept, held_out = split(strata, held_out=tested(test, len(y)), seed=0)
        x = np.asarray(x)
        values = [x[kept], y[kept], x[held_out], y[held_out]]
    x, x_test = map(_channels_first, values[::2])
    if x_test.shape[1:] != x.shape[1:]:
        raise UserError(f"{said}: x is {x.shape}, that of the test part {x_test.shape}")
    names = ["y"] if values[1].ndim == 1 else [f"y{k}" for k in range(values[1].shape[1])]
    y, y_test, facts = encode(values[1], values[3], kind=kind, names=names, said=f"{said}: y")
    shape, rows, test_rows = x.shape[1:], _rows(x), _rows(x_test)
    return of_arrays(
        name,
        lambda: (rows, y),
        lambda: (test_rows, y_test),
        shape=shape,
        source=source,
        by_column=len(shape) == 1,
        **facts,
    )


def of_result(made: Any, *, target: str) -> Dataset:
    """The data set that a function of one's own has returned, `target`.

    It may be arrays x, y[, x, y of the test part]; or a torch Dataset, or two of them,
    the second for the test, whose examples (x, y) are brought into memory.
    """
    from torch.utils.data import Dataset as Examples

    said = f"data._target_={target}"
    parts = list(made) if isinstance(made, tuple | list) else [made]
    if parts and all(isinstance(part, Examples) for part in parts):
        parts = [array for part in parts for array in _stacked(part, said)]
    elif not all(hasattr(part, "__array__") for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise UserError(
            f"{said}: must return arrays x, y[, x_test, y_test] or torch Datasets, not {kinds}"
        )
    return of_parts(parts, name=target.rpartition(".")[2], source=target, said=said)


def _stacked(examples: Any, said: str) -> tuple[NDArray[Any], NDArray[Any]]:
    pairs = [examples[i] for i in range(len(examples))]
    x = [np.asarray(x) for x, _ in pairs]
    if len(shapes := {value.shape for value in x}) > 1:
        raise UserError(f"{said}: must give examples of one shape, not {sorted(shapes)[:2]}")
    return np.stack(x), np.array([np.asarray(y) for _, y in pairs])


def _check_finite(x: NDArray[Any], *, said: str) -> None:
    if x.dtype.kind == "f":
        for start in range(0, len(x), CHUNK):  # of a file that is larger than memory
            bad = ~np.isfinite(x[start : start + CHUNK]).reshape(len(x[start : start + CHUNK]), -1)
            if bad.any():
                row = start + int(np.flatnonzero(bad.any(1))[0])
                raise UserError(f"{said} must be finite; example {row} holds NaN or infinity")
    elif x.dtype.kind not in "uib":
        raise UserError(f"{said} must hold numbers, not {x.dtype}")


def _channels_first(x: NDArray[Any]) -> NDArray[Any]:
    """Colour images as [n, 3, height, width], grey ones as [n, height, width]."""
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.moveaxis(x, -1, 1)
    return x[:, 0] if x.ndim == 4 and x.shape[1] == 1 else x


def _rows(x: NDArray[Any]) -> NDArray[Any]:
    kept = x if x.dtype in (np.uint8, np.float32) else x.astype(np.float32)
    return kept.reshape(len(x), -1)
