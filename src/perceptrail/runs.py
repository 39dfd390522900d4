"""Run directories: who wrote them, and how one that was interrupted is found again."""

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

import yaml

from perceptrail.errors import UserError

RECORD, METRICS, MODEL = "run.json", "metrics.json", "model"
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
    """Read a JSON object."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def shown(run_dir: Path) -> Path:
    """A run directory as one would type it here."""
    absolute = run_dir.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def open_record(run_dir: Path) -> dict[str, Any]:
    """The record of a run directory: read when it is there (a resumed run), else begun.

    `key` names the run from its first moment on; `run_id` is MLflow's, in the store `uri` under
    `experiment`, and comes later.
    """
    path = run_dir / RECORD
    if path.exists():
        return read_json(path)
    record = {"key": uuid.uuid4().hex, "started": time.time(), "run_id": None}
    write_json(path, record)
    return record


def find(name: str, *, root: Path = Path(), finished: bool = False) -> Path | None:
    """The directory of a run: `latest` under `root`, an MLflow run id, or the directory itself.

    `finished` passes over runs that have not come to their end, where they leave their model.
    """

    def counts(folder: Path) -> bool:
        return (folder / RECORD).is_file() and (not finished or (folder / METRICS).is_file())

    if counts(Path(name)):
        return Path(name)
    records = [
        (folder, read_json(folder / RECORD))
        for top in ("outputs", "multirun")
        for path in (root / top).glob(f"*/*/**/{RECORD}")
        if counts(folder := path.parent)
    ]
    if name == "latest":
        newest = max(records, key=lambda found: float(found[1]["started"]), default=None)
        return newest[0] if newest else None
    return next((folder for folder, record in records if record["run_id"] == name), None)


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Replace `resume=RUN` by the overrides which that run was started with, and its directory.

    Overrides given beside `resume` come last and win. Raises `UserError` when there is no such run,
    or it cannot be gone on with.
    """
    wanted = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not wanted or wanted[-1] in ("null", ""):
        return list(arguments)
    run_dir = find(wanted[-1])
    if run_dir is None:
        raise UserError(
            f"resume={wanted[-1]}: there is no such run here; give latest, an MLflow run id or a "
            "run directory (with a run.json in it)"
        )
    last = run_dir / LAST
    try:
        can_go_on = not last.is_file() or _has_optimizers(last)
    except BadZipFile:
        raise UserError(
            f"resume={wanted[-1]}: {shown(last)} is damaged; without it the run begins anew"
        ) from None
    if not can_go_on:
        raise UserError(
            f"resume={wanted[-1]}: {shown(run_dir)} was trained in a stack, which stores no state "
            "of its optimizers to go on from; train it alone, without hydra/launcher=fused"
        )
    stored = yaml.safe_load((run_dir / ".hydra" / "overrides.yaml").read_text())
    earlier = [o for o in stored if not o.startswith(("resume=", "hydra.run.dir="))]
    rest = [a for a in arguments if not a.startswith("resume=")]
    return [*earlier, *rest, f"resume={run_dir}", f"hydra.run.dir={run_dir}"]


def _has_optimizers(checkpoint: Path) -> bool:
    """Whether one of PyTorch's files, a zip, names them; to be asked before PyTorch is there."""
    with ZipFile(checkpoint) as file:
        names = (name for name in file.namelist() if name.endswith("/data.pkl"))
        return any(b"optimizer_states" in file.read(name) for name in names)
