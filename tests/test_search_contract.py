"""Hydra's own tests of sweepers and launchers, against this sweeper.

Batches of jobs are returned where a launcher runs them; trials in this process or in workers return
nothing. What does not apply: `LauncherTestSuite`, whose jobs return None, where a trial returns a
number, and of which some sweep nothing, where a search needs a space.
"""

from pathlib import Path
from typing import Any

import pytest
from hydra.extra.pytest_plugin import hydra_restore_singletons, hydra_sweep_runner  # noqa: F401
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite

pytestmark = pytest.mark.usefixtures("fresh_hydra")

SEARCH = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.figures=false"]


@pytest.mark.filterwarnings("ignore::UserWarning:joblib")
@pytest.mark.filterwarnings("ignore:.*Future Hydra versions")  # Hydra's own application
@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [("joblib", [*SEARCH, "hydra.launcher.n_jobs=1", "hydra.sweeper.n_jobs=2"])],
)
class TestBatches(BatchedSweeperTestSuite):
    """Three batches of two jobs."""


# One of a pair of trials, which has to be there for a search and stays out of the folders' names.
ONE = [
    "+n=1,2",
    "hydra.sweeper.n_trials=1",
    "hydra.job.config.override_dirname.exclude_keys=[n,seed]",
]


@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", *SEARCH, *ONE])])
class TestIntegration(IntegrationTestSuite):
    """The folders and names of jobs."""

    # It gives two commands the same folder, which means to go on with a search that is complete.
    test_to_absolute_path_multirun = None

    def generate_custom_cmd(self) -> Any:
        """Let the application return a number, for a trial without one has failed."""

        def changed(command: list[str], filename: str) -> list[str]:
            path = Path(next(word for word in command if word.endswith(filename)))
            head, _, tail = path.read_text().partition("\nif __name__")
            path.write_text(f"{head.rstrip()}\n    return 0.0\n\nif __name__{tail}")
            return command

        return changed
