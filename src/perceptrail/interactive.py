"""Runs from Python and notebooks: `train`, `evaluate` and `load`, as the commands do it."""

import logging
import signal
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf

from perceptrail import command, evaluation, runs
from perceptrail.commands.train import main
from perceptrail.conclusion import HISTORY, Clock
from perceptrail.data.dataset import as_float
from perceptrail.errors import UserError
from perceptrail.invocation import CONF
from perceptrail.network import Network
from perceptrail.network import load as load_network
from perceptrail.prediction import Predictor

if TYPE_CHECKING:
    import pandas as pd

SHOWN = (
    "best/",
    "test/",
    "time/fit_s",
)  # of a run's metrics, how those begin that a notebook shows


@dataclass(frozen=True)
class Run:
    """A finished run: what its directory `run_dir` holds, read when it is asked for."""

    run_dir: Path

    @property
    def run_id(self) -> str | None:
        """MLflow's name of the run, if it was recorded there."""
        found: str | None = runs.read_json(self.run_dir / runs.RECORD)["run_id"]
        return found

    @cached_property
    def config(self) -> DictConfig:
        """What it was trained by."""
        cfg = OmegaConf.load(self.run_dir / ".hydra" / "config.yaml")
        assert isinstance(cfg, DictConfig)
        return cfg

    @property
    def metrics(self) -> dict[str, Any]:
        """The last epoch's metrics, the best of each as `best/...`, and those of the test."""
        return runs.read_json(self.run_dir / runs.METRICS)

    @property
    def history(self) -> "pd.DataFrame":
        """The metrics of every epoch, a row each."""
        import pandas as pd

        return pd.read_csv(self.run_dir / HISTORY)

    @property
    def figures(self) -> list[Path]:
        """Its pictures."""
        return sorted((self.run_dir / "figures").rglob("*.png"))

    @cached_property
    def network(self) -> Network:
        """The network with the weights of the best epoch, ready to predict."""
        return load_network(self.run_dir / runs.MODEL)[0]

    def predict(self, x: Any) -> "pd.DataFrame":
        """What the network makes of inputs: a data frame of the columns that it was trained on, or
        an array [n, ...] of examples in the data's shape, or in rows; bytes stand for n / 255.
        One row an input.
        """
        if not hasattr(x, "columns"):
            x = as_float(np.asarray(x))
            x = x.reshape(len(x), -1)
        return Predictor(self.run_dir / runs.MODEL).predict(x)

    def evaluate(self, *overrides: str) -> dict[str, float]:
        """Its metrics on the test split, which `metrics` holds from then on."""
        return evaluate(self, *overrides)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self._shown().items())
        return f"Run({str(runs.shown(self.run_dir))!r}: {told})"

    def _shown(self) -> dict[str, str]:
        metrics = self.metrics.items()
        return {name: f"{value:.4g}" for name, value in metrics if name.startswith(SHOWN)}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{value}</td></tr>"
            for name, value in self._shown().items()
        )
        curves = self.run_dir / "figures" / "learning_curves.png"
        picture = ""
        if curves.is_file():
            data = b64encode(curves.read_bytes()).decode()
            picture = f'<img src="data:image/png;base64,{data}" alt="learning curves" width="700">'
        return f"<b>{escape(str(runs.shown(self.run_dir)))}</b><table>{rows}</table>{picture}"


def train(*overrides: str, **values: Any) -> Run:
    """Train as `python train.py` does, with overrides as they are typed there, and return the run.

    `values` are overrides, too: `train(model="deep", seed=3, **{"optimizer.lr": 3e-3})`. Raises
    `UserError` for what can be put right, and `KeyboardInterrupt`; `resume=latest` then goes on.
    """
    given = [*overrides, *(f"{key}={_typed(value)}" for key, value in values.items())]
    with _as_command("train", given):
        Clock.called = time.time()
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        expanded = runs.expand_resume(given)
        with runs.kept(expanded):
            job = hydra.run("train", main, expanded)
        assert job.hydra_cfg is not None
    return Run(Path(job.hydra_cfg.hydra.runtime.output_dir))


def evaluate(run: "Run | str | Path" = "latest", *overrides: str) -> dict[str, float]:
    """Judge a stored run on the test split, once, into that same run; returns its metrics there.

    The run is named as on the command line: latest, best, an MLflow run id, a directory.
    """
    with _as_command("evaluate"):
        folder = _located(run, overrides)
        evaluation.evaluate(_named(folder, overrides))
    return {k: v for k, v in Run(folder).metrics.items() if k.startswith("test/")}


def load(run: "Run | str | Path" = "latest", *overrides: str) -> Run:
    """A stored run, named as for `evaluate`; one trained elsewhere is fetched from MLflow."""
    with _as_command("evaluate"):
        return Run(_located(run, overrides))


def _located(run: "Run | str | Path", overrides: tuple[str, ...]) -> Path:
    return run.run_dir if isinstance(run, Run) else evaluation.locate(_named(run, overrides))


def _named(run: "str | Path", overrides: tuple[str, ...]) -> DictConfig:
    cfg = compose(
        "evaluate", [*overrides, runs.override("run", Path(run))], return_hydra_config=True
    )
    HydraConfig.instance().set_config(cfg)  # which tracking.uri refers to
    return cfg


def _typed(value: Any) -> str:
    """A value as it is typed in an override."""
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_typed(v)}' for key, v in value.items())}}}"
    return str(value)


@contextmanager
def _as_command(name: str, given: Sequence[str] = ()) -> Iterator[None]:
    """Hydra made ready as for a command so `given`, and this process left as it was.

    What would end the command with a message is raised as a `UserError`.
    """
    root, here = logging.getLogger(), str(Path.cwd())
    handlers, level = root.handlers[:], root.level
    # Whoever sets up logging anew, as Hydra does, closes all handlers that are on this list.
    all_handlers, logging._handlerList[:] = logging._handlerList[:], []  # type: ignore[attr-defined]
    ctrl_c, state = signal.getsignal(signal.SIGINT), Singleton.get_state()
    argv, sys.argv = sys.argv, ["perceptrail", name, *given]  # what records say, and messages
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    GlobalHydra.instance().clear()
    try:
        with (
            command.errors_for_people(name),
            initialize_config_dir(str(CONF), job_name=name, version_base="1.3"),
        ):
            yield
    except SystemExit as stop:
        if stop.code == command.INTERRUPTED:
            raise KeyboardInterrupt from None
        if isinstance(stop.code, str):
            raise UserError(stop.code) from None
        raise
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level
        logging._handlerList[:0] = all_handlers  # type: ignore[attr-defined]
        Singleton.set_state(state)
        sys.argv = argv
        Clock.called = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, ctrl_c)  # Lightning leaves it ignored
