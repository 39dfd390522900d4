"""Run directories: who wrote them, and how one that was interrupted is found again."""

import json
import os
import re
import shlex
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import yaml

from perceptrail.errors import UserError

RECORD, METRICS, MODEL = "run.json", "metrics.json", "model"
SETTINGS = ".hydra"  # the folder that Hydra writes
ARCHITECTURE = "model.json"  # in the folder of a model: what it is made of
BEST, LAST = "best.ckpt", "last.ckpt"


class StoredRun(NamedTuple):
    """A run in the tracking store: its id, and the directory that it wrote (empty if unknown)."""

    run_id: str
    run_dir: Path


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one step: whoever reads it, at whatever moment, finds a whole one."""
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(values, indent=2) + "\n")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `UserError`, naming the file, where there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(f"{shown(path)}: cannot be read ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"{shown(path)}: cannot be read (it is damaged)")
    return values


def shown(run_dir: Path) -> Path:
    """A run directory as one would type it here."""
    absolute = run_dir.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def override(key: str, path: Path) -> str:
    """An override whose value is a path, whatever that is made of."""
    text = str(path)
    if not re.fullmatch(r"[\w./:+@%-]*", text, re.ASCII):
        text = "'" + text.replace("'", "\\'") + "'"
    return f"{key}={text}"


def unquoted(text: str) -> str:
    """A value of an override without the quotes that Hydra takes off."""
    quoted = re.fullmatch(r"(['\"])(.*)\1", text)
    return quoted[2].replace(f"\\{quoted[1]}", quoted[1]) if quoted else text


def argument(key: str, path: Path) -> str:
    """The same, of `path` as it is `shown`, to be pasted into a shell."""
    return shlex.quote(override(key, shown(path)))


def open_record(run_dir: Path) -> dict[str, Any]:
    """The record of a run directory: read when it is there (a resumed run), else begun.

    `key` names the run from its first moment on; `run_id` is MLflow's, in the store `uri` under
    `experiment`, and comes later.
    """
    path = run_dir / RECORD
    if path.exists():
        return read_record(run_dir)
    record = {"key": uuid.uuid4().hex, "started": time.time(), "run_id": None}
    write_json(path, record)
    return record


def check_output(
    path: Path, *, key: str, inputs: Sequence[Path] = (), makes_folders: bool = False
) -> None:
    """Check that a file can be written, which is none of the `inputs`, before it is made.

    Raises `UserError`.
    """
    folder = path.absolute().parent
    while makes_folders and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{key}={path}: there is no folder {shown(folder)}")
    if path.is_dir():
        raise UserError(f"{key}={path}: is a folder; give a file")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}={path}: nothing can be written to {shown(folder)}")
    if path.exists() and any(path.samefile(source) for source in inputs if source.exists()):
        raise UserError(f"{key}={path}: is what is read; give another file")


def read_record(run_dir: Path) -> dict[str, Any]:
    """The record that is there. Raises `UserError` if it is none."""
    record = read_json(path := run_dir / RECORD)
    if not {"key", "started", "run_id"} <= record.keys():
        raise UserError(f"{shown(path)}: cannot be read (it is damaged)")
    return record


def _records(folders: Iterator[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Those of folders that can be read."""
    for folder in folders:
        try:
            yield folder, read_record(folder)
        except UserError:
            continue


def find(name: str, *, root: Path = Path(), finished: bool = False) -> Path | None:
    """The directory of a run: `latest` under `root`, an MLflow run id, or the directory itself.

    `finished` passes over runs that have not come to their end, where they leave their model.
    """

    def counts(folder: Path) -> bool:
        return (folder / RECORD).is_file() and (not finished or (folder / METRICS).is_file())

    if counts(Path(name)):
        return Path(name)
    folders = (
        path.parent
        for top in ("outputs", "multirun")
        for path in (root / top).glob(f"*/*/**/{RECORD}")
        if counts(path.parent)
    )
    records = list(_records(folders))
    if name == "latest":
        newest = max(records, key=lambda found: float(found[1]["started"]), default=None)
        return newest[0] if newest else None
    return next((folder for folder, record in records if record["run_id"] == name), None)


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Replace `resume=RUN` by the overrides which that run was started with, and its directory.

    Overrides given beside `resume` come last and win. Raises `UserError` when there is no such run,
    or it cannot be gone on with.
    """
    given = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not given or given[-1] in ("null", ""):
        return list(arguments)
    name = unquoted(given[-1])
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(f"resume={name}: goes on with one run; leave out -m")
    run_dir = find(name)
    if run_dir is None:
        raise UserError(
            f"resume={name}: there is no such run here; give latest, an MLflow run id or a "
            "run directory (with a run.json in it)"
        )
    last = run_dir / LAST
    try:
        can_go_on = not last.is_file() or _has_optimizers(last)
    except BadZipFile:
        raise UserError(
            f"resume={name}: {shown(last)} is damaged; without it the run begins anew"
        ) from None
    if not can_go_on:
        raise UserError(
            f"resume={name}: {shown(run_dir)} was trained in a stack, which stores no state "
            "of its optimizers to go on from; train it alone, without hydra/launcher=fused"
        )
    path = run_dir / SETTINGS / "overrides.yaml"
    stored = yaml.safe_load(path.read_text()) if path.is_file() else None
    if not (isinstance(stored, list) and all(isinstance(o, str) for o in stored)):
        raise UserError(f"resume={name}: {shown(path)} does not tell what the run was started with")
    earlier = [o for o in stored if not o.startswith(("resume=", "hydra.run.dir="))]
    rest = [a for a in arguments if not a.startswith("resume=")]
    return [*earlier, *rest, override("resume", run_dir), override("hydra.run.dir", run_dir)]


@contextmanager
def kept(expanded: Sequence[str]) -> Iterator[None]:
    """Have a run that is gone on with, by arguments as `expand_resume` returns them, keep the
    settings that it is stored with, unless it goes on for an epoch by those that are given now.
    """
    given = [a.removeprefix("resume=") for a in expanded if a.startswith("resume=")]
    if not given or given[-1] in ("null", ""):
        yield
        return
    run_dir = Path(unquoted(given[-1]))
    last = run_dir / LAST
    files = {path: path.read_bytes() for path in (run_dir / SETTINGS).glob("*.yaml")}

    def epoch() -> int:
        return last.stat().st_mtime_ns if last.is_file() else 0

    before = epoch()
    try:
        yield
    except BaseException:
        if epoch() == before:
            for path, content in files.items():
                path.write_bytes(content)
        raise


def _has_optimizers(checkpoint: Path) -> bool:
    """Whether one of PyTorch's files, a zip, names them; to be asked before PyTorch is there."""
    with ZipFile(checkpoint) as file:
        names = (name for name in file.namelist() if name.endswith("/data.pkl"))
        return any(b"optimizer_states" in file.read(name) for name in names)
