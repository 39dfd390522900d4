"""Registers `hydra/sweeper=optuna`, its samplers and pruners; Hydra imports this at each start."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict, read_write

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
OFFICIAL = "hydra_plugins.hydra_optuna_sweeper"


@dataclass
class Settings:
    """The search: `hydra.sweeper.*`."""

    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    _target_: str = f"{__name__}.OptunaSweeper"
    _recursive_: bool = False
    _convert_: str = "all"

    sampler: Any = MISSING
    pruner: Any = MISSING
    # The study goes on where one of this name stopped, in the same storage.
    study_name: str = "${hydra.job.name}"
    # A journal file, or the URL of a database; null: study.journal in hydra.sweep.dir.
    storage: str | None = None
    # minimize, maximize, or a list of them; null: what monitor.mode says, else minimize.
    direction: Any = None
    # Trials that the study shall have in all, over every time it is resumed.
    n_trials: int | None = 20
    # Trials at a time: worker processes, or the size of a batch given to another launcher.
    n_jobs: int = 1
    seed: int = 0
    # How often the parameters of a failed trial are tried again.
    retries: int = 0
    # So many failed trials in a row end the search; null: none do.
    max_failures: int | None = 10
    # What is searched: overrides of Hydra's sweep grammar and more, see perceptrail.search.grammar.
    params: dict[str, Any] = field(default_factory=dict)
    # Expressions such as sum(model.hidden) <= 512, or full names of functions of the configuration.
    constraints: list[str] = field(default_factory=list)
    # Points to begin with; the keys that a point leaves out are as they are by default.
    enqueue: list[Any] = field(default_factory=lambda: [{}])
    # Full name of a function (trial, values) that returns more overrides as {key: value}.
    hook: str | None = None
    # Whether to draw, in figures/ of hydra.sweep.dir.
    figures: bool = True


_OPTUNA = "optuna.samplers"
SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"_target_": f"{_OPTUNA}.TPESampler", "multivariate": True, "group": True},
    "gp": {"_target_": f"{_OPTUNA}.GPSampler", "warn_independent_sampling": False},
    "cmaes": {"_target_": f"{_OPTUNA}.CmaEsSampler", "warn_independent_sampling": False},
    "qmc": {
        "_target_": f"{_OPTUNA}.QMCSampler",
        "scramble": True,
        "warn_independent_sampling": False,
    },
    "random": {"_target_": f"{_OPTUNA}.RandomSampler"},
    "grid": {"_target_": "perceptrail.search.sampling.Exhaustive"},
    "brute_force": {"_target_": "perceptrail.search.sampling.Exhaustive", "shuffle": True},
    "nsgaii": {"_target_": f"{_OPTUNA}.NSGAIISampler", "population_size": 20},
    "nsgaiii": {"_target_": f"{_OPTUNA}.NSGAIIISampler", "population_size": 20},
}

_OPTUNA = "optuna.pruners"
_MEDIAN = {"_target_": f"{_OPTUNA}.MedianPruner", "n_startup_trials": 5, "n_warmup_steps": 1}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {"_target_": f"{_OPTUNA}.NopPruner"},
    "median": _MEDIAN,
    "percentile": {"_target_": f"{_OPTUNA}.PercentilePruner", "percentile": 25.0},
    "successive_halving": {"_target_": f"{_OPTUNA}.SuccessiveHalvingPruner"},
    "hyperband": {"_target_": f"{_OPTUNA}.HyperbandPruner"},
    "wilcoxon": {"_target_": f"{_OPTUNA}.WilcoxonPruner"},
    "patient": {"_target_": f"{_OPTUNA}.PatientPruner", "wrapped_pruner": _MEDIAN, "patience": 2},
}


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
        store = ConfigStore.instance()
        store.store(group="hydra/sweeper", name="optuna", node=Settings, provider="perceptrail")
        for group, options in {"sampler": SAMPLERS, "pruner": PRUNERS}.items():
            for name, node in options.items():
                store.store(
                    group=f"hydra/sweeper/{group}", name=name, node=node, provider="perceptrail"
                )
