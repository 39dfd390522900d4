"""Jobs that are trained together: prepared one by one, trained in groups, ended as if alone."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tqdm import tqdm

from perceptrail import config, recorder
from perceptrail.build import dataset, which_data
from perceptrail.conclusion import Clock, Trained, conclude
from perceptrail.data.dataset import Dataset
from perceptrail.errors import UserError
from perceptrail.fused.member import Member, Outcome
from perceptrail.fused.sharing import fit
from perceptrail.fused.vmapped import loss_obstacle, obstacle
from perceptrail.network import Module
from perceptrail.runs import BEST, LAST
from perceptrail.trainer import use_device
from perceptrail.training import assemble, pruning_of, recorded, returned

log = logging.getLogger(__name__)


def prepare(
    cfg: DictConfig,
    told: config.Plain,
    datasets: dict[str, Dataset],
    firsts: dict[Hashable, Module],
) -> Member:
    """The network that a job is to train; a data set that many jobs name is read once.

    `told` is what `config.plain` makes of its configuration, `firsts` holds the first module of
    each shape. Raises `UserError` as a run of the job would, and if what it has of one's own cannot
    be part of a stack.
    """
    config.validate(cfg, told)
    if cfg.tracking.uri is not None:  # its process imports MLflow while this one trains
        recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    use_device(cfg.trainer)
    which = str(which_data(cfg))
    if which not in datasets:
        found = dataset(cfg)
        datasets[which] = replace(found, train=cache(found.train))
    member = Member(cfg, told, assemble(cfg, datasets[which]), pruning_of(cfg))
    network, data = member.network, member.data
    if not member.task.is_plain:
        reason = loss_obstacle(member.task, data.train_targets[:2], outputs=data.outputs)
        if reason is not None:
            raise UserError(f"task.loss._target_={cfg.task.loss._target_}: {reason}")
    if isinstance(network, Module):
        other = firsts.setdefault(member.shape, network)
        reason = obstacle(network, other, inputs=data.inputs, batch=data.batch_size)
        if reason is not None:
            raise UserError(f"model._target_={cfg.model._target_}: {reason}")
    return member


def train(members: Sequence[Member], *, processes: int | None = None) -> None:
    """Train members, those of one shape together, shared out among `processes`."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(member.shape, []).append(member)
    total = sum(member.epochs for member in members)
    with tqdm(total=total, unit="epoch", disable=None, dynamic_ncols=True) as bar:
        fit(list(groups.values()), bar.update, processes=processes)


def finish(cfg: DictConfig, member: Member, *, start: float) -> float | list[float]:
    """Leave what a run leaves, inside the Hydra job; return what a run returns."""
    run_dir, outcome = Path(HydraConfig.get().runtime.output_dir), member.outcome
    with recorded(cfg, run_dir, member.data, live=False) as store:
        for row in outcome.rows:
            store.post("log_row", row)
        if outcome.error is not None:
            raise outcome.error
        for name, file in (("best", BEST), ("last", LAST)):
            torch.save(_checkpoint(outcome, name), run_dir / file)
        best = {k: torch.from_numpy(v) for k, v in outcome.states["best"].items()}
        member.network.load_state_dict(best)
        trained = Trained(
            *(cfg, run_dir, member.data, member.network, member.task),
            *(outcome.rows, outcome.best_epoch + 1),
        )
        reached = conclude(trained, store, Clock(start, start, start + outcome.seconds))
    for judge in member.pruning:
        judge.end(reached)
    return returned(cfg, reached)


def _checkpoint(outcome: Outcome, name: str) -> dict[str, Any]:
    epoch = outcome.best_epoch if name == "best" else len(outcome.rows) - 1
    state = outcome.states[name]
    return {
        "epoch": epoch,
        "global_step": outcome.rows[epoch]["step"],
        "state_dict": {f"network.{k}": torch.from_numpy(v) for k, v in state.items()},
    }
