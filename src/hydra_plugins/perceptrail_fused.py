"""Registers `hydra/launcher=fused`; Hydra imports this at each start."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class Settings:
    """The launcher: `hydra.launcher.*`."""

    _target_: str = f"{__name__}.FusedLauncher"
    # Processes that share each stack; null: one for each of PyTorch's threads. With another number
    # the members of a stack draw other random numbers for dropout and noise.
    processes: int | None = None


class FusedLauncher(Launcher):
    """Hydra's side of the launcher; what it does is imported when there are jobs."""

    def __init__(self, processes: int | None) -> None:
        self._processes = processes

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what jobs need."""
        from perceptrail.fused.launcher import QuickLoader

        loader = hydra_context.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        hydra_context.config_loader = QuickLoader(loader, config)  # the sweeper's too
        self.hydra_context, self.config, self.function = hydra_context, config, task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs, together where that can be."""
        from perceptrail.fused.launcher import launch

        return launch(
            job_overrides,
            initial_job_idx,
            context=self.hydra_context,
            function=self.function,
            config=self.config,
            processes=self._processes,
        )


ConfigStore.instance().store(
    group="hydra/launcher", name="fused", node=Settings, provider="perceptrail"
)
