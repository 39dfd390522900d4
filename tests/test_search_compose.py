"""The quick composition against Hydra's own."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from search_app.lab import HERE

from perceptrail.search.compose import Composer


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["x=1"],
        ["x=1", "model=deep", "y=${x}"],
        ["optimizer=sgd", "optimizer.momentum=0.5", "model.hidden=[1,2]"],
        ["+new.key=1", "++x=3", "~y", "+also={a: 1, b: [2]}"],
        ["~optimizer", "x=2"],
        ["+optimizer@second=sgd", "second.lr=3"],
        ["trial={study: s, number: 3}", "model=shallow"],
    ],
)
def test_composes_what_hydra_composes(overrides: list[str]) -> None:
    with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
        hydra = GlobalHydra.instance().hydra
        given = ["hydra.sweep.dir=here", "hydra.job.name=other"]
        master = hydra.compose_config(
            "config", given, RunMode.MULTIRUN, with_log_configuration=False
        )
        composer = Composer(hydra.config_loader, master)
        composer.compose(["x=7", "model=deep", "y=8"])  # what comes before leaves no trace
        for _ in range(2):
            whole = hydra.config_loader.load_sweep_config(master, overrides)
            quick = composer.compose(overrides)
            assert OmegaConf.to_yaml(quick) == OmegaConf.to_yaml(whole)
            assert quick == whole


@pytest.mark.parametrize("override", ["nokey=1", "model=none", "model.nokey=1"])
def test_refuses_what_hydra_refuses(override: str) -> None:
    with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
        hydra = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", [], RunMode.MULTIRUN, with_log_configuration=False)
        with pytest.raises(HydraException):
            Composer(hydra.config_loader, master).compose([override])
