"""The end of a run: the best weights judged, everything kept and recorded, a summary."""

import csv
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Self

import psutil
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from perceptrail import gallery, runs
from perceptrail.build import task_name
from perceptrail.callbacks import Row
from perceptrail.config import OWN
from perceptrail.data.module import Data
from perceptrail.invocation import pages, typed
from perceptrail.measures import KINDS, MEASURES, measure, said
from perceptrail.network import Module, Network, fault, sources
from perceptrail.passwords import masked
from perceptrail.prediction import judge
from perceptrail.recorder import RunLog
from perceptrail.tasks import Task

HISTORY = "history.csv"
OF_EPOCHS = ("epoch", "step", "lr", "dropout", "train/samples_per_second")


@dataclass
class Clock:
    """The seconds of a run: from the start of the process, or of the job in a multirun.

    Moments are as `time.time` has them.
    """

    called: ClassVar[float | None] = None  # the moment, if it was not as a command

    start: float
    start_of_fit: float = 0.0
    end_of_fit: float = 0.0

    @classmethod
    def of_job(cls) -> "Clock":
        """A clock for the Hydra job that is running."""
        single = HydraConfig.get().mode == RunMode.RUN
        return cls(cls.called or psutil.Process().create_time() if single else time.time())

    def start_fit(self) -> None:
        """The training begins."""
        self.start_of_fit = time.time()

    def end_fit(self) -> None:
        """The training has ended."""
        self.end_of_fit = time.time()

    def read(self) -> dict[str, float]:
        """The seconds so far, as metrics."""
        return {
            "time/startup_s": self.start_of_fit - self.start,
            "time/fit_s": self.end_of_fit - self.start_of_fit,
            "time/total_s": time.time() - self.start,
        }


@dataclass(frozen=True)
class Trained:
    """What a training leaves in memory; the network has the weights of the `best_epoch`."""

    cfg: DictConfig
    run_dir: Path
    data: Data
    network: Network
    task: Task
    rows: list[Row]
    best_epoch: int  # counted from 1

    @classmethod
    def stored(
        cls,
        cfg: DictConfig,
        run_dir: Path,
        *,
        data: Data,
        network: Network,
        task: Task,
        rows: list[Row],
    ) -> Self:
        """What it leaves whose best weights are in its checkpoint."""
        best = torch.load(run_dir / runs.BEST, map_location="cpu", weights_only=True)
        network.cpu()
        if isinstance(network, Module) and task_name(cfg) == OWN:
            network.body.load_state_dict(best["state_dict"])
        else:
            of_network = {k.partition("network."): v for k, v in best["state_dict"].items()}
            weights = {name: v for (before, _, name), v in of_network.items() if not before}
            network.load_state_dict(weights)
        return cls(cfg, run_dir, data, network, task, rows, int(best["epoch"]) + 1)


def conclude(trained: Trained, log: RunLog, clock: Clock) -> dict[str, float]:
    """Judge the best weights on the validation data; write and record all there is to keep.

    Returns what an objective can be: the best value of each metric, and the parameters' number.
    """
    run_dir, rows = trained.run_dir, trained.rows
    data, network, monitor = trained.data, trained.network, trained.cfg.monitor.metric
    best_epoch, step = trained.best_epoch, int(rows[-1]["step"])
    sizes = {"inputs": data.inputs, "outputs": data.outputs}
    told = not isinstance(network, Module) or fault(network, **sizes) is None
    task = trained.task.facts() if told else None
    facts: dict[str, Any] = {"classes": data.classes, "shape": data.shape, "task": task}
    facts["digest"] = data.dataset.digest
    facts |= {"targets": data.dataset.targets} if data.dataset.targets else {}
    facts |= {"columns": data.dataset.columns.facts()} if data.dataset.columns else {}
    facts |= {"pictures": data.dataset.pictures} if data.dataset.pictures else {}
    network.save(run_dir / runs.MODEL, **facts)
    log.post("log_model", str(run_dir / runs.MODEL), code=sources(network))

    if trained.cfg.figures:
        folder = run_dir / "figures"
        drawn = gallery.draw_training(
            folder,
            network,
            [{_usual(name): value for name, value in row.items()} for row in rows],
            best_epoch=best_epoch,
            shape=data.shape,
            task=trained.task.name,
        )
        if told:
            x, y = (part.cpu().numpy() for part in data.val)
            judgement = judge(network, x, y, task=trained.task)
            drawn += gallery.draw_judgement(
                folder, network, x, y, judgement, dataset=data.dataset, task=trained.task.name
            )
        log.post("log_files", [str(path) for path in drawn], folder="figures")
    _write_history(run_dir / HISTORY, rows)
    log.post("log_files", [str(run_dir / runs.BEST), str(run_dir / HISTORY)])
    best = rows[best_epoch - 1]
    reached = _extremes(rows, best)
    extremes = {f"best/{name}": value for name, value in reached.items()}
    log.post("log_metrics", extremes, step=step)
    log.call("ping")

    times = clock.read()
    log.post("log_metrics", times, step=step)
    speed = median(row["train/samples_per_second"] for row in rows)
    own = {"run_id": log.run_id, "best_epoch": best_epoch, "train/samples_per_second": speed}
    runs.write_json(run_dir / runs.METRICS, {**rows[-1], **extremes, **times, **own})
    log.call("log_files", [str(run_dir / runs.METRICS)])
    known = [*KINDS[trained.task.name].measures, *trained.cfg.metrics]
    found = {k: best[f"val/{k}"] for k in known if f"val/{k}" in best}
    summary = (
        f"{monitor} {reached[monitor]:.4f}{f', validation {said(found)}' if found else ''} "
        f"(epoch {best_epoch} of {len(rows)})\n"
        f"{network.parameter_count:,} parameters, {speed:,.0f} samples/s, "
        f"{times['time/fit_s']:.1f} s of training, {times['time/total_s']:.1f} s in all"
    )
    log.call(
        "set_tags", {"mlflow.note.content": summary.replace("\n", "\n\n") + _pointers(run_dir)}
    )
    print(
        f"\n{summary}\n"
        f"run:  {runs.shown(run_dir)}" + (f"  (MLflow {log.run_id})" if log.run_id else "") + "\n"
        f"next: {typed('evaluate')} {runs.argument('run', run_dir)}"
        + (f"   or   {pages(masked(trained.cfg.tracking.uri))}" if log.run_id else "")
    )
    return {**reached, "parameters": float(network.parameter_count)}


def _pointers(run_dir: Path) -> str:
    """Where to go from a run's page, in Markdown."""
    return (
        "\n\nThe figures are under Artifacts, the curves under Model metrics. On the test data: "
        f"`{typed('evaluate')} {runs.argument('run', run_dir)}`; the same training again: the "
        "command among the tags."
    )


def _usual(name: str) -> str:
    """The name of a metric as it is here, such as val/loss for val_loss."""
    return re.sub("^(train|val)_(.*?)(_epoch)?$", r"\1/\2", name)


def _extremes(rows: Sequence[Row], best: Row) -> dict[str, float]:
    """The best value of each loss and measure over the epochs, and the best epoch's of others."""
    known = {
        name: (max if measure(name).highest else min)(row[name] for row in rows if name in row)
        for name in rows[-1]
        if name.startswith(("train/", "val/")) and name.partition("/")[2] in MEASURES
    }
    return {name: value for name, value in best.items() if name not in OF_EPOCHS} | known


def _write_history(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
