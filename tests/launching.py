"""Jobs through a launcher, in this process."""

from collections.abc import Sequence
from pathlib import Path

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, setup_globals
from hydra.types import HydraContext, RunMode
from running import ROOT

from perceptrail import training

QUIET = ("tracking=none", "figures=false", "callbacks.progress=null", "trainer.accelerator=cpu")


def launch(launcher: str, jobs: Sequence[Sequence[str]], folder: Path) -> Sequence[JobReturn]:
    """Run jobs, each given by its overrides of train.yaml; their folders are 0, 1, ..."""
    version.setbase("1.3")
    setup_globals()
    GlobalHydra.instance().clear()
    paths = create_config_search_path(str(ROOT / "conf"))
    hydra = Hydra.create_main_hydra2("train", paths)
    config = hydra.compose_config(
        config_name="train",
        overrides=[f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"],
        run_mode=RunMode.MULTIRUN,
    )
    plugin = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(hydra.config_loader, Callbacks(config)),
        task_function=training.run,
        config=config,
    )
    return plugin.launch([[*QUIET, *job] for job in jobs], initial_job_idx=0)
