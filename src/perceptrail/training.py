"""The one place where a run is wired together: data, network, training, records."""

import csv
import logging
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from getpass import getuser
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.backends import mps

from perceptrail import config, gallery, recorder, runs
from perceptrail.build import USE, build, dataset, naming
from perceptrail.callbacks import (
    BEST,
    LAST,
    Checkpoints,
    EpochSeed,
    History,
    Row,
    ScheduledDropout,
    StopOnDivergence,
)
from perceptrail.classifier import Classifier
from perceptrail.data.module import DataModule
from perceptrail.errors import UserError
from perceptrail.model import MLP
from perceptrail.prediction import judge
from perceptrail.recorder import RunLog

if TYPE_CHECKING:
    from perceptrail.search.pruning import Pruning

HISTORY = "history.csv"
CHUNK = 64  # steps between two looks of Lightning and its callbacks

# Noise about what is meant: a run directory with Hydra's files in it; a rename within PyTorch.
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated")
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
# Costs time and changes no result.
torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def run(cfg: DictConfig) -> float | list[float]:
    """Train as `cfg` says, record it, and return the best value of the monitored metric.

    With `cfg.objectives`, the best values of those metrics instead.

    Runs inside a Hydra job, whose output directory becomes the run directory. Raises `UserError`
    for what the user can put right, `KeyboardInterrupt` when Ctrl-C was pressed, and
    `optuna.TrialPruned` when the search that the run belongs to has given it up.
    """
    config.validate(cfg)
    clock = _Clock()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    random.seed(cfg.seed)
    np.random.seed(cfg.seed)
    torch.manual_seed(cfg.seed)

    data = DataModule(
        dataset(cfg), seed=cfg.seed, chunk=_chunk(cfg), **{key: cfg.data[key] for key in USE}
    )
    data.setup("fit")
    if cfg.model.norm == "batch" and data.n_train % data.batch_size == 1:
        raise UserError(
            f"data.batch_size={data.batch_size}: leaves one of the {data.n_train} examples alone "
            "in the last batch, which model.norm=batch cannot be trained on; take another size"
        )
    with naming("model"):
        network = MLP(data.inputs, data.outputs, mean=data.mean, std=data.std, **cfg.model)
    optimizer, schedule = _optimizer(cfg, network)
    with naming("regularization"):
        classifier = Classifier(
            network,
            optimizer=optimizer,
            schedule=schedule,
            monitor=cfg.monitor.metric,
            **cfg.regularization,
        )
    history = History()
    checkpoints = Checkpoints(run_dir, monitor=cfg.monitor.metric, mode=cfg.monitor.mode)
    pruning = _pruning(cfg)
    trainer = _trainer(cfg, run_dir, [*_callbacks(cfg), *pruning, history, checkpoints])
    last = run_dir / LAST
    fit = partial(trainer.fit, classifier, data, ckpt_path=last if last.exists() else None)
    if not trainer.is_global_zero:  # a further process of a distributed training: computes, no more
        fit()
        return float("nan")

    with _recorded(cfg, run_dir, data) as log, _interruptible(run_dir):
        history.receive = partial(log.post, "log_row")
        clock.start_fit()
        fit()
        clock.end_fit()
        reached = _conclude(_Trained(cfg, run_dir, data, network, history.rows), log, clock)
    for callback in pruning:
        callback.raise_if_pruned()
    if cfg.objectives is None:
        return reached[cfg.monitor.metric]
    return [reached[name] for name in cfg.objectives]


@dataclass(frozen=True)
class _Trained:
    """What a training leaves in memory."""

    cfg: DictConfig
    run_dir: Path
    data: DataModule
    network: MLP
    rows: list[Row]


def _conclude(trained: _Trained, log: RunLog, clock: "_Clock") -> dict[str, float]:
    """Judge the best weights on the validation data; write and record all there is to keep.

    Returns what an objective can be: the best value of each metric, and the parameters' number.
    """
    run_dir, rows = trained.run_dir, trained.rows
    data, network, monitor = trained.data, trained.network, trained.cfg.monitor.metric
    best = torch.load(run_dir / BEST, map_location="cpu", weights_only=True)
    weights = {k.removeprefix("network."): v for k, v in best["state_dict"].items()}
    network.cpu().load_state_dict(weights)
    best_epoch, step = int(best["epoch"]) + 1, int(rows[-1]["step"])
    x, y = (part.cpu().numpy() for part in data.val)
    judgement = judge(network, x, y)
    network.save(run_dir / runs.MODEL, classes=data.classes, shape=data.shape)
    model = str(run_dir / runs.MODEL)
    log.post("log_model", model, classes=list(data.classes), inputs=data.inputs)

    folder = run_dir / "figures"
    drawn = [
        *gallery.draw_training(folder, network, rows, best_epoch=best_epoch, shape=data.shape),
        *gallery.draw_judgement(folder, network, x, y, judgement, dataset=data.dataset),
    ]
    _write_history(run_dir / HISTORY, rows)
    log.post("log_files", [str(path) for path in drawn], folder="figures")
    log.post("log_files", [str(run_dir / BEST), str(run_dir / HISTORY)])
    reached = _extremes(rows)
    extremes = {f"best/{name}": value for name, value in reached.items()}
    log.post("log_metrics", extremes, step=step)
    log.call("ping")

    times = clock.read()
    log.post("log_metrics", times, step=step)
    speed = median(row["train/samples_per_second"] for row in rows)
    own = {"run_id": log.run_id, "best_epoch": best_epoch, "train/samples_per_second": speed}
    runs.write_json(run_dir / runs.METRICS, {**rows[-1], **extremes, **times, **own})
    log.call("log_files", [str(run_dir / runs.METRICS)])
    shown = runs.shown(run_dir)
    summary = (
        f"{monitor} {reached[monitor]:.4f}, "
        f"validation accuracy {judgement.accuracy:.2%} (epoch {best_epoch} of {len(rows)})\n"
        f"{network.parameter_count:,} parameters, {speed:,.0f} samples/s, "
        f"{times['time/fit_s']:.1f} s of training, {times['time/total_s']:.1f} s in all"
    )
    log.call("set_tags", {"mlflow.note.content": summary.replace("\n", "\n\n") + _pointers(shown)})
    print(
        f"\n{summary}\n"
        f"run:  {shown}" + (f"  (MLflow {log.run_id})" if log.run_id else "") + "\n"
        f"next: python evaluate.py run={shown}" + ("   or   make ui" if log.run_id else "")
    )
    return {**reached, "parameters": float(network.parameter_count)}


def _pointers(run_dir: Path) -> str:
    """Where to go from a run's page, in Markdown."""
    return (
        "\n\nThe figures are under Artifacts, the curves under Model metrics. On the test data: "
        f"`python evaluate.py run={run_dir}`; the same training again: the command among the tags."
    )


@contextmanager
def _interruptible(run_dir: Path) -> Iterator[None]:
    """Say how to go on after an interruption; Lightning's exit on Ctrl-C becomes the key again."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"\nInterrupted. Go on with: python train.py resume={runs.shown(run_dir)}")
        if isinstance(stop, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None


class _Clock:
    """The seconds of a run: from the start of the process, or of the job in a multirun."""

    def __init__(self) -> None:
        single = HydraConfig.get().mode == RunMode.RUN
        self._start = psutil.Process().create_time() if single else time.time()

    def start_fit(self) -> None:
        self._fit = time.time()

    def end_fit(self) -> None:
        self._end = time.time()

    def read(self) -> dict[str, float]:
        return {
            "time/startup_s": self._fit - self._start,
            "time/fit_s": self._end - self._fit,
            "time/total_s": time.time() - self._start,
        }


def _chunk(cfg: DictConfig) -> int:
    """How many batches to hand over at once: one where Lightning has to see, or count, each."""
    counted = cfg.trainer.get("limit_train_batches", 1.0) != 1.0
    return 1 if counted or cfg.trainer.devices != 1 else CHUNK


def _optimizer(cfg: DictConfig, network: MLP) -> tuple[Any, Any]:
    """What makes the optimizer, and the schedule; both tried, so that they work later."""
    make = build(cfg.optimizer, key="optimizer")
    with naming("optimizer"):
        optimizer = make(network.parameters())
    schedule = build(cfg.schedule, key="schedule")
    with naming("schedule"):
        schedule(optimizer if isinstance(schedule.func, type) else 0.0)
    return make, schedule


def _callbacks(cfg: DictConfig) -> list[Callback]:
    chosen = [build(node, key=f"callbacks.{name}") for name, node in cfg.callbacks.items() if node]
    with naming("dropout"):
        dropout = ScheduledDropout(**cfg.dropout)
    return [EpochSeed(cfg.seed), *chosen, dropout, StopOnDivergence()]


def _pruning(cfg: DictConfig) -> "list[Pruning]":
    if cfg.trial is None:
        return []
    from perceptrail.search.pruning import Pruning  # imports Optuna

    return [Pruning(cfg.trial, monitor=cfg.monitor.metric)]


def _trainer(cfg: DictConfig, run_dir: Path, callbacks: Sequence[Callback]) -> pl.Trainer:
    wanted = cfg.trainer.accelerator
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": mps.is_available()}
    present |= {"auto": True, "gpu": present["cuda"] or present["mps"]}
    if not present.get(wanted, True):
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise UserError(f"trainer.accelerator={wanted}: this machine has none; use {there}")
    trainer: pl.Trainer = build(
        cfg.trainer,
        key="trainer",
        callbacks=list(callbacks),
        default_root_dir=run_dir,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    return trainer


@contextmanager
def _recorded(cfg: DictConfig, run_dir: Path, data: DataModule) -> Iterator[RunLog]:
    """Record what happens inside as one MLflow run, and how it ends."""
    record = runs.open_record(run_dir)
    if cfg.tracking.uri is None:
        yield RunLog(None, None)
        return
    line = recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    choices = HydraConfig.get().runtime.choices
    tags, texts = _provenance()
    if cfg.trial is not None:
        tags |= {"trial.study": cfg.trial.study, "trial.number": str(cfg.trial.number)}
    run_id = line.call(
        "open_run",
        key=record["key"],
        name=f"{choices['data']}-{choices['model']}-{record['key'][:4]}",
        run_dir=str(run_dir),
        owner=os.getpid(),
        tags=tags,
        parent=cfg.tracking.parent,
        system_metrics=cfg.tracking.system_metrics,
    )
    store = {"uri": cfg.tracking.uri, "experiment": cfg.tracking.experiment}
    runs.write_json(run_dir / runs.RECORD, {**record, "run_id": run_id, **store})
    log = RunLog(line, run_id)
    secret = ("trial.storage",)  # may hold a password
    log.post("log_params", {k: v for k, v in _flat(cfg).items() if k not in secret})
    log.post("log_texts", texts)
    log.post("log_files", [str(path) for path in (run_dir / ".hydra").iterdir()], folder="config")
    log.post("log_environment")
    log.post(
        "log_dataset",
        name=data.dataset.name,
        digest=data.dataset.digest,
        source=data.dataset.source,
        facts={"train": data.n_train, "validation": data.n_val, "shape": data.shape},
    )
    try:
        yield log
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        log.call("close_run", status=status, note=f"{status}: {error}")
        raise
    log.call("close_run", status="FINISHED")


def _provenance() -> tuple[dict[str, str], dict[str, str]]:
    """Where a run comes from: tags, and texts to be stored as files."""
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    source = Path(sys.argv[0])
    tags = {"mlflow.source.name": source.name, "mlflow.user": getuser(), "command": command}
    texts = {"environment/command.txt": command + "\n"}
    commit = _git("rev-parse", "HEAD").strip()
    if commit:
        tags["mlflow.source.git.commit"] = commit
        diff = _git("diff", "HEAD")
        tags["git.dirty"] = str(bool(diff)).lower()
        if diff:
            texts["environment/uncommitted.diff"] = diff
    if torch.cuda.is_available():
        tags["machine.gpu"] = torch.cuda.get_device_name()
    return tags, texts


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(
            ["git", "-C", str(Path(sys.argv[0]).parent), *arguments],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
    except FileNotFoundError:
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _flat(cfg: DictConfig) -> dict[str, str]:
    """Every value of the configuration by its dotted key, as text."""

    def leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", str(value)

    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    return dict(leaves(resolved, ""))  # type: ignore[arg-type]


def _extremes(rows: Sequence[Row]) -> dict[str, float]:
    """The best value of each loss and accuracy over the epochs."""
    names = [name for name in rows[-1] if name.endswith(("/loss", "/acc"))]
    return {
        name: (min if name.endswith("/loss") else max)(row[name] for row in rows if name in row)
        for name in names
    }


def _write_history(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
