"""Tables of one's own: CSV, Parquet or a pandas data frame, made rows of numbers."""

import gzip
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from perceptrail.data.dataset import Dataset, of_arrays, split, tested
from perceptrail.data.targets import encode
from perceptrail.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

FEW = 20  # so many whole numbers, as a target, are classes
SEPARATORS = ",;\t"
TEXTS = 100  # so many texts of a column become values 0 and 1


@final
@dataclass(frozen=True)
class Columns:
    """What makes rows of numbers of a table.

    `numbers` are its columns of numbers, each with what takes the place of a missing value.
    `categories` are its columns of names, with those names that are known: each becomes a value, 1
    where it is that name and else 0. A name that is missing, or new, is none of them.

    Both are plain enough for JSON: `Columns(**columns.facts())` is the same again.
    """

    numbers: Mapping[str, float]
    categories: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, frame: "pd.DataFrame", *, categorical: Sequence[str] = ()) -> "Columns":
        """What becomes of the columns of a frame, learned from its rows: medians and names.

        Columns of numbers that are names are `categorical`. Raises `UserError` for a column that
        is of no use.
        """
        from pandas.api.types import is_numeric_dtype

        numbers, categories, useless = {}, {}, {}
        for name in map(str, frame):
            column = frame[name].dropna()
            if column.empty:
                useless[name] = "holds nothing"
            elif is_numeric_dtype(column.dtype) and name not in categorical:
                numbers[name] = float(f"{column.median():.6g}")
            elif len(known := sorted(set(_texts(column)))) <= TEXTS:
                categories[name] = known
            else:
                useless[name] = f"holds {len(known)} different texts, of which {TEXTS} are allowed"
        if useless:
            usable = [*numbers, *categories]
            raise UserError(
                f"data.features: {'; '.join(f'{k} {why}' for k, why in useless.items())}; "
                f"leave it out: 'data.features=[{','.join(usable)}]'"
            )
        if not (numbers or categories):
            raise UserError("data.features: there must be a column to learn from beside the target")
        return cls(numbers, categories)

    @property
    def names(self) -> list[str]:
        """The name of each value of a row."""
        pairs = [f"{name}={known}" for name in self.categories for known in self.categories[name]]
        return [*self.numbers, *pairs]

    def facts(self) -> dict[str, Any]:
        """What it is made of, for JSON."""
        return asdict(self)

    def rows(self, frame: "pd.DataFrame", *, said: str = "data.path") -> NDArray[np.float32]:
        """Rows [n, values] of a frame that has these columns, in whatever order, and maybe others.

        Raises `UserError`, which names the table as it is `said`, for a column that is missing or
        holds what is no finite number.
        """
        check_columns(frame, [*self.numbers, *self.categories], said=said)
        values = [_numbers(frame[name], fill, said) for name, fill in self.numbers.items()]
        for name, known in self.categories.items():
            text = np.asarray(_texts(frame[name]), object)
            values += [(text == category).astype(np.float32) for category in known]
        return np.stack(values, 1)

    def missing(self, frame: "pd.DataFrame") -> str:
        """What is missing in a frame, and what takes its place, in words; "" if nothing is."""
        counts = {str(name): count for name, count in frame.isna().sum().items() if count}
        fills = {name: f"the median, {fill:g}" for name, fill in self.numbers.items()}
        return ", ".join(
            f"{name} {count} ({fills.get(name, 'none of its categories')})"
            for name, count in counts.items()
        )


def _texts(column: "pd.Series[Any]") -> list[str]:
    """Values as texts; a whole number is one, also where missing ones have made it a float."""
    whole = (isinstance(value, float) and value.is_integer() for value in column)
    return [str(int(v) if is_whole else v) for v, is_whole in zip(column, whole, strict=True)]


def _numbers(column: "pd.Series[Any]", fill: float, said: str) -> NDArray[np.float32]:
    try:
        values: NDArray[np.float32] = column.astype(float).fillna(fill).to_numpy(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}: column {column.name} must hold numbers ({error})") from None
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{said}: column {column.name} must be finite; it is not in row {row + 1}")
    return values


def check_columns(frame: "pd.DataFrame", names: Sequence[str], *, said: str) -> None:
    """Raise `UserError` if a frame lacks one of the columns."""
    there = list(map(str, frame))
    for name in names:
        if name not in there:
            raise UserError(
                f"{said}: there is no column {name}{did_you_mean(name, there)}; "
                f"it has {', '.join(there)}"
            )


def read(
    path: "str | Path | pd.DataFrame", *, key: str, separator: str | None = None
) -> "pd.DataFrame":
    """The table in a CSV (`.csv`, `.tsv`, or either as `.gz`) or Parquet file; a frame is one.

    A CSV's fields stand apart by the `separator`, else by the one of comma, semicolon and tab that
    its first line has most of. Empty fields, and those with a mark that pandas knows or `?`, are
    missing values. Raises `UserError` if there is no such file, or it cannot be read.
    """
    import pandas as pd  # a second

    if isinstance(path, pd.DataFrame):
        return path
    readers: Mapping[str, Callable[..., pd.DataFrame]] = {
        ".csv": partial(_read_csv, separator=separator),
        ".tsv": partial(_read_csv, separator="\t"),
        ".parquet": pd.read_parquet,
    }
    if not isinstance(path, str | Path):
        raise UserError(f"{key}: must be a file or a pandas DataFrame, not {type(path).__name__}")
    file = Path(path).expanduser()
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in readers:
        raise UserError(f"{key}={path}: must end in {', '.join(readers)}")
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file")
    try:
        return readers[suffix](file)
    except (ValueError, OSError) as error:  # pandas' and Arrow's errors are such
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{key}={path}: cannot be read ({line})") from error


def _read_csv(file: Path, *, separator: str | None) -> "pd.DataFrame":
    import pandas as pd

    if separator is None:
        with (
            gzip.open(file, "rt", encoding="utf-8")
            if file.suffix.lower() == ".gz"
            else file.open(encoding="utf-8") as lines
        ):
            first = lines.readline()
        separator = max(SEPARATORS, key=first.count)
    return pd.read_csv(file, sep=separator, na_values="?")


def table(
    *,
    path: "str | pd.DataFrame",
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    test: "float | str | pd.DataFrame" = 0.2,
    kind: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """A table of one's own, its columns to be standardised by themselves.

    The target is of a class if it is text, true or false, or one of a few whole numbers; else it is
    a number, as several `target`s are; `kind` says otherwise. All other columns are `features`, if
    nothing else is said. `test` is a file or frame of the test part, or its share of the table,
    the same rows for every seed. Rows without a target are left out.

    Raises `UserError` for a column that there is not or that is of no use, and unusable targets.
    """
    said = f"data.path={path}" if isinstance(path, str) else "data.path"
    names = [target] if isinstance(target, str) else list(target)
    frame = _with_target(read(path, key="data.path", separator=separator), names, said)
    kind = kind or _kind(frame[names])
    if isinstance(test, float):
        strata = frame[names[0]].factorize()[0] if kind == "classes" else np.zeros(len(frame), int)
        held = split(strata.astype(np.int64), held_out=tested(test, len(frame)), seed=0)
        parts = [frame.iloc[rows] for rows in held]
    else:
        held_out = read(test, key="data.test", separator=separator)
        parts = [frame, _with_target(held_out, names, f"data.test={test}")]
    wanted = [str(name) for name in frame if name not in names] if features is None else features
    if twice := [name for name in wanted if name in names]:
        raise UserError(f"data.features: must not hold {', '.join(twice)}, which is data.target")
    check_columns(frame, [*wanted, *categorical], said=said)
    columns = Columns.of(parts[0][list(wanted)], categorical=categorical)
    if missing := columns.missing(frame[list(wanted)]):
        log.info("%s: missing values: %s", said, missing)
    y, y_test, facts = encode(
        *(_targets(part[names], kind) for part in parts),
        kind=kind,
        names=names,
        said=f"data.target={target}",
    )
    x, x_test = (columns.rows(part, said=said) for part in parts)
    return of_arrays(
        Path(path).stem if isinstance(path, str) else "table",
        lambda: (x, y),
        lambda: (x_test, y_test),
        shape=x.shape[1:],
        source=str(Path(path).expanduser().resolve()) if isinstance(path, str) else "a data frame",
        by_column=True,
        columns=columns,
        **facts,
    )


def _with_target(frame: "pd.DataFrame", names: Sequence[str], said: str) -> "pd.DataFrame":
    check_columns(frame, names, said=said)
    whole = frame.dropna(subset=list(names))
    if len(whole) < len(frame):
        without = len(frame) - len(whole)
        log.info("%s: %s rows without %s are left out", said, without, " and ".join(names))
    return whole


def _kind(targets: "pd.DataFrame") -> str:
    """Whether a table's targets are classes or numbers."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    first = targets.iloc[:, 0]
    if targets.shape[1] > 1:
        return "numbers"
    if not is_numeric_dtype(first.dtype) or is_bool_dtype(first.dtype):
        return "classes"
    if (first % 1 == 0).all() and first.nunique() <= FEW:
        log.info(
            "data.target=%s: whole numbers, %s of them, are taken for classes; "
            "data.kind=numbers takes them for numbers",
            *(first.name, first.nunique()),
        )
        return "classes"
    return "numbers"


def _targets(targets: "pd.DataFrame", kind: str) -> NDArray[Any]:
    from pandas.api.types import is_float_dtype, is_numeric_dtype

    column = targets.iloc[:, 0]
    values: NDArray[Any] = (column if targets.shape[1] == 1 else targets).to_numpy()
    if kind == "numbers" or targets.shape[1] > 1:
        return values
    if is_float_dtype(column.dtype) and (column % 1 == 0).all():
        return values.astype(np.int64)  # that they are not whole came from missing ones
    return values if is_numeric_dtype(column.dtype) else np.array(_texts(column), object)
