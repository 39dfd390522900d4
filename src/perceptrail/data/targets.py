"""What there is to tell of an example: its class, by number, or numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptrail.errors import UserError

KINDS = ("classes", "numbers")


def encode(
    train: NDArray[Any], test: NDArray[Any], *, kind: str | None, names: Sequence[str], said: str
) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    """Targets of both parts as a `Dataset` has them, with the facts about them.

    Without a `kind`, floating-point numbers and several columns are numbers, all else is classes.
    `names` are those of the columns; `said` is how the user has named the targets. Raises
    `UserError` for a class that the training part lacks, a single class, and what is no number.
    """
    if kind is None:
        kind = "numbers" if train.dtype.kind == "f" or train.ndim > 1 else "classes"
    if kind == "numbers":
        y, y_test = (_as_numbers(part, said) for part in (train, test))
        return y, y_test, {"targets": tuple(names)}
    if train.ndim > 1:
        raise UserError(f"{said}: must be one column for classes, not {train.shape[1]}")
    known, number = np.unique(train, return_inverse=True)
    if len(known) < 2:
        raise UserError(f"{said}: must have two classes at least, not {', '.join(map(str, known))}")
    check_seen(map(str, np.setdiff1d(test, known)), said=said)
    facts = {"classes": tuple(map(str, known)), "strata": by_class}
    return number.astype(np.int64), np.searchsorted(known, test).astype(np.int64), facts


def by_class(x: NDArray[Any], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """The strata of a split that keeps the share of every class."""
    return y


def check_seen(unseen: Any, *, said: str) -> None:
    """Raise `UserError` if there are classes that occur in the test part alone."""
    if few := sorted(unseen)[:5]:
        raise UserError(
            f"{said}: {', '.join(few)} only in the test part; every class must be among the "
            "training examples"
        )


def _as_numbers(values: NDArray[Any], said: str) -> NDArray[np.float32]:
    try:
        y: NDArray[np.float32] = values.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}: must hold numbers, for data.kind=numbers ({error})") from None
    if not np.isfinite(y).all():
        raise UserError(f"{said}: must be finite; it holds NaN or an infinite number")
    return y
