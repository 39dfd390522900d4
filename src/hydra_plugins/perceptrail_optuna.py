"""Registers `hydra/sweeper=optuna`, its samplers and pruners; Hydra imports this at each start."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from perceptrail.search.options import PRUNERS, SAMPLERS
from perceptrail.search.settings import Settings

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
OFFICIAL = "hydra_plugins.hydra_optuna_sweeper"


class OptunaSweeper(Sweeper):
    """Hydra's side of the sweeper; the search itself is imported when one begins."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.launcher: Launcher | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a search needs."""
        from perceptrail.search.sweeper import SearchError

        if importlib.util.find_spec(OFFICIAL) is not None:
            raise SearchError(
                "perceptrail and hydra-optuna-sweeper both bring hydra/sweeper=optuna: "
                "pip uninstall hydra-optuna-sweeper"
            )
        self.hydra_context, self.config, self.function = hydra_context, config, task_function
        ray = OmegaConf.select(config, "hydra.launcher.ray.init")
        if ray is not None and (ray.get("address") or "RAY_ADDRESS" in os.environ):
            with read_write(ray), open_dict(ray):  # its launcher sets one, which a cluster refuses
                ray.setdefault("object_store_memory", None)
        if config.hydra.launcher._target_ != BASIC_LAUNCHER:
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Sequence[Any]:
        """Search; returns the batches of jobs that a launcher has run."""
        from perceptrail.search.sweeper import sweep

        return sweep(
            self.settings,
            context=self.hydra_context,
            function=self.function,
            config=self.config,
            launcher=self.launcher,
            arguments=arguments,
        )


class Registration(SearchPathPlugin):
    """Registers after all plugins are imported: ours must be the one that meets the official one.

    Both bring `hydra/sweeper=optuna`, and the last to register would silently win.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Register; the search path stays as it is."""
        # The name by which a configuration written for the official plugin asks for its sweeper.
        classes = Plugins.instance().class_name_to_class
        classes.setdefault(f"{OFFICIAL}.optuna_sweeper.OptunaSweeper", OptunaSweeper)
        store, settings = ConfigStore.instance(), OmegaConf.structured(Settings)
        for name in ("params", "search_space"):
            OmegaConf.set_struct(settings[name], False)  # any key is new there
        store.store(group="hydra/sweeper", name="optuna", node=settings, provider="perceptrail")
        for kind, options in {"sampler": SAMPLERS, "pruner": PRUNERS}.items():
            group = f"hydra/sweeper/{kind}"
            for name, node in options.items():
                store.store(group=group, name=name, node=node, provider="perceptrail")
