"""Hydra's own requirements of a launcher."""

import pytest
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

pytestmark = pytest.mark.usefixtures("fresh_hydra")


@pytest.mark.parametrize("launcher_name, overrides", [("fused", [])])
class TestLauncher(LauncherTestSuite):
    """What any launcher does."""


@pytest.mark.slow
@pytest.mark.parametrize("task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=fused"])])
class TestIntegration(IntegrationTestSuite):
    """The same through the command line."""
