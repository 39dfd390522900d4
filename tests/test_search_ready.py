"""The searches that come with the repository: composed, checked and begun, not run."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

from perceptrail import config as _resolvers  # noqa: F401
from perceptrail.invocation import CONF
from perceptrail.search.settings import Settings
from perceptrail.search.sweeper import Search


@pytest.mark.parametrize("name", ["xor", "mnist_learning_rate", "mnist_architecture"])
def test_begins(tmp_path: Path, name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        given = [f"hparams_search={name}", f"hydra.sweep.dir={tmp_path}"]
        master = hydra.compose_config(
            "train", given, RunMode.MULTIRUN, with_log_configuration=False
        )
        HydraConfig.instance().set_config(master)
        settings = OmegaConf.to_container(master.hydra.sweeper, resolve=True)
        assert isinstance(settings, dict)
        search = Search(
            Settings(**{k: v for k, v in settings.items() if not str(k).startswith("_")}),
            context=HydraContext(hydra.config_loader, Callbacks()),
            function=lambda cfg: 0.0,
            config=master,
            launcher=None,
            arguments=[f"hparams_search={name}"],
        )
        trial = search._ledger.claim()
        assert trial is not None
        overrides = search._overrides(trial)
        search._ledger.close()
    assert f"hparams_search={name}" in overrides
