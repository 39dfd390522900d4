"""The quick composition and the quick run of a job against Hydra's own."""

import copy
import gc
import logging
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core import utils
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from search_app.lab import HERE

from perceptrail.search import engines, jobs
from perceptrail.search.engines import Task
from perceptrail.search.jobs import Composer, run_job


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


class Heard(Callbacks):
    """What a job says to Hydra's callbacks."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the function."""
        self.said.append(OmegaConf.to_yaml(config))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """After it."""
        self.said.append((OmegaConf.to_yaml(config), job_return.status))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["hydra.job.chdir=true", "+hydra.job.env_set={SEARCHED: '1e-3'}"],
        ["hydra.sweep.subdir=${model.hidden.0}-${hydra:job.num}", "+text=['on','1_0','é','']"],
        ["hydra.output_subdir=null", "trouble=raise"],
        ["hydra/job_logging=none"],
    ],
)
def test_runs_a_job_as_hydra_does(tmp_path: Path, overrides: list[str]) -> None:
    seen: list[Any] = []

    def function(cfg: DictConfig) -> float:
        logging.getLogger().info("here")
        job = HydraConfig.get()
        seen.append((copy.deepcopy(cfg), OmegaConf.is_struct(cfg), OmegaConf.to_yaml(job)))
        seen.append((job.runtime.output_dir, job.sweep.subdir, Path.cwd()))
        seen.append(os.environ.get("SEARCHED"))
        if cfg.trouble == "raise":
            raise RuntimeError("no luck")
        return float(cfg.x)

    def ours(config: DictConfig, context: HydraContext) -> JobReturn:
        return run_job(config, function=function, context=context)

    def hydras(config: DictConfig, context: HydraContext) -> JobReturn:
        keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
        return utils.run_job(function, config, hydra_context=context, **keys)

    results = []
    with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
        hydra = GlobalHydra.instance().hydra
        given = [f"hydra.sweep.dir={tmp_path}/sweep", *overrides]
        for run in (hydras, ours):
            utils.setup_globals()
            config = hydra.compose_config(
                "config", given, RunMode.MULTIRUN, with_log_configuration=False
            )
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.job.num = 3
            config.hydra.job.id = "3"
            callbacks = Heard()
            job = run(config, HydraContext(hydra.config_loader, callbacks))
            (tmp_path / "sweep").rename(tmp_path / run.__name__)
            files = {
                path.relative_to(tmp_path / run.__name__): path.read_text()
                for path in (tmp_path / run.__name__).rglob("*.yaml")
            }
            logs = [path.name for path in (tmp_path / run.__name__).rglob("*.log")]
            returned = (job.status, str(job._return_value), job.cfg, job.overrides, job.working_dir)
            hidden = (OmegaConf.to_yaml(job.hydra_cfg), job.task_name)
            results.append((seen[:], callbacks.said, files, logs, returned, hidden))
            seen.clear()
            assert HydraConfig.instance().cfg is None
    assert results[0] == results[1]


def test_a_trial_finds_nothing_left_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training holds itself, and with it its data; many would fill the memory."""
    monkeypatch.setattr(engines, "LONG_S", 0)
    trainings: list[weakref.ref[Any]] = []

    class Training:
        def __init__(self) -> None:
            self.itself = self

    def train(_: DictConfig) -> float:
        assert not [alive for alive in trainings if alive() is not None]
        training = Training()
        trainings.append(weakref.ref(training))
        gc.collect(1)  # it grows old, as one does that takes a while
        return 0.0

    with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
        hydra = GlobalHydra.instance().hydra
        given = [f"hydra.sweep.dir={tmp_path}"]
        master = hydra.compose_config(
            "config", given, RunMode.MULTIRUN, with_log_configuration=False
        )
        HydraConfig.instance().set_config(master)
        task = Task(HydraContext(hydra.config_loader, Callbacks()), train, master, 1)
        composer = task.composer()
        for number in range(3):
            outcome = task.run(composer, number, [])
            assert outcome.values == (0.0,), outcome.reason


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": {}, "b": "two\nlines", "c": [1, {"d": None}]},
        {"hydra": {"x": {"y": 1}}},
        {"on": {"x": {"1_0": "a: b"}}, 3: {"y": {"z": "many words " * 20, "w": ["more " * 30]}}},
    ],
)
def test_yaml_by_parts_is_that_of_the_whole(content: dict[str, Any]) -> None:
    config = OmegaConf.create(content)
    assert jobs._text(config) == OmegaConf.to_yaml(config)


def test_each_job_logs_into_a_file_of_its_own_as_it_is_told_to(tmp_path: Path) -> None:
    """Whatever the last job was told, and whatever it has done to its own logging."""
    quiet = "hydra.job_logging.root.level=WARNING"
    given = [[], [], [quiet], [quiet], [], ["hydra.job.name=other"], [], []]

    def function(cfg: DictConfig) -> float:
        number = int(HydraConfig.get().job.num)
        logging.getLogger().info("info of %d", number)
        logging.getLogger().warning("warning of %d", number)
        if number == 6:
            logging.getLogger().setLevel(logging.ERROR)
        return 0.0

    with initialize_config_dir(str(HERE / "conf"), version_base="1.3", job_name="app"):
        hydra = GlobalHydra.instance().hydra
        for number, own in enumerate(given):
            config = hydra.compose_config(
                "config",
                [f"hydra.sweep.dir={tmp_path}", f"hydra.sweep.subdir={number}", *own],
                RunMode.MULTIRUN,
                with_log_configuration=False,
            )
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.job.num = number
            run_job(config, function=function, context=HydraContext(hydra.config_loader, Heard()))
    for number, own in enumerate(given):
        (file,) = (tmp_path / str(number)).glob("*.log")
        assert file.stem == ("other" if "hydra.job.name=other" in own else "app")
        said = [line.split(" - ")[-1] for line in file.read_text().splitlines()]
        info = [] if own == [quiet] else [f"info of {number}"]
        assert said == [*info, f"warning of {number}"]
