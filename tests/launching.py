"""Jobs through a launcher, in this process."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn

from perceptrail import studies

QUIET = ("tracking=none", "figures=false", "callbacks.progress=null", "trainer.accelerator=cpu")


def launch(
    launcher: str, jobs: Sequence[Sequence[str]], folder: Path, *, processes: int | None = None
) -> Sequence[JobReturn]:
    """Run jobs, each given by its overrides of train.yaml; their folders are 0, 1, ..."""
    every = [[*QUIET, *job] for job in jobs]
    return studies.launch(every, folder=folder, launcher=launcher, processes=processes)
