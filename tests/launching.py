"""Jobs through a launcher, in this process."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn
from safetensors.torch import load_file

from perceptrail import studies

QUIET = ("tracking=none", "figures=false", "callbacks.progress=null", "trainer.accelerator=cpu")


def launch(
    launcher: str, jobs: Sequence[Sequence[str]], folder: Path, *, processes: int | None = None
) -> Sequence[JobReturn]:
    """Run jobs, each given by its overrides of train.yaml; their folders are 0, 1, ..."""
    every = [[*QUIET, *job] for job in jobs]
    return studies.launch(every, folder=folder, launcher=launcher, processes=processes)


def history(folder):
    """What each epoch came to, but for the speed."""
    with (folder / "history.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def assert_alike(jobs, tmp_path):
    """Have the jobs run both ways, and compare all that they leave."""
    alone = launch("basic", jobs, tmp_path / "alone")
    fused = launch("fused", jobs, tmp_path / "fused")
    for number, (a, b) in enumerate(zip(alone, fused, strict=True)):
        one, other = tmp_path / "alone" / str(number), tmp_path / "fused" / str(number)
        assert a.return_value == pytest.approx(b.return_value, rel=1e-4), jobs[number]
        expected, rows = history(one), history(other)
        assert len(expected) == len(rows)
        for left, right in zip(expected, rows, strict=True):
            assert list(left) == list(right)
            assert right == pytest.approx(left, rel=1e-4, abs=1e-6), jobs[number]
        weights = load_file(other / "model" / "model.safetensors")
        for name, value in load_file(one / "model" / "model.safetensors").items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
        files = {p.relative_to(one) for p in one.rglob("*")}
        assert {p.relative_to(other) for p in other.rglob("*")} == files
        left, right = (json.loads((f / "metrics.json").read_text()) for f in (one, other))
        assert list(left) == list(right)
        assert left["best_epoch"] == right["best_epoch"]
