"""A Hydra application that is quick to run, for the tests of the search."""

import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna import TrialPruned

from perceptrail import recorder


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | list[float]:
    """A bowl with its lowest point at x = 0.5, y = 2, and whatever trouble is asked for."""
    if "ray" in sys.modules:
        node = sys.modules["ray"].get_runtime_context().get_node_id()
        (Path(HydraConfig.get().runtime.output_dir) / "node").write_text(node)
    with recorded(cfg):
        return work(cfg)


@contextmanager
def recorded(cfg: DictConfig) -> Iterator[None]:
    """One MLflow run, as `train.py` opens and closes it."""
    if cfg.tracking.uri is None:
        yield
        return
    line = recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    run_id = line.call(
        "open_run",
        key=uuid.uuid4().hex,
        name="trial",
        run_dir=HydraConfig.get().runtime.output_dir,
        owner=os.getpid(),
        tags={"trial.study": cfg.trial.study, "trial.number": str(cfg.trial.number)},
        parent=cfg.tracking.parent,
    )
    try:
        yield
    except Exception:
        line.call("close_run", run_id, status="FAILED")
        raise
    line.call("close_run", run_id, status="FINISHED")


def work(cfg: DictConfig) -> float | list[float]:
    """The value, or the trouble that was asked for."""
    if cfg.trouble == "wait" and cfg.trial.number == 0:  # for one that begins when another ends
        folder = Path(HydraConfig.get().runtime.output_dir)
        while not (folder.parent / "3").exists():
            time.sleep(0.01)
    if cfg.trouble == "diverge":
        return math.nan
    if cfg.trouble == "prune":
        raise TrialPruned
    if cfg.trouble == "raise":
        raise RuntimeError(f"no luck with x={cfg.x}")
    if cfg.trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(cfg.nap)
    value = (cfg.x - 0.5) ** 2 + (cfg.y - 2) ** 2 + 0.01 * sum(cfg.model.hidden)
    return [value, sum(cfg.model.hidden)] if cfg.objectives == 2 else value


if __name__ == "__main__":
    main()
