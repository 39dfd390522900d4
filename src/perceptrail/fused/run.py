"""Jobs that are trained together: prepared one by one, trained in groups, ended as if alone."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from perceptrail import config
from perceptrail.build import USE, dataset
from perceptrail.callbacks import BEST, LAST
from perceptrail.conclusion import Clock, Trained, conclude
from perceptrail.data.sets import Dataset
from perceptrail.fused.group import Group
from perceptrail.fused.member import Member
from perceptrail.training import assemble, check_accelerator, pruning_of, recorded, returned

log = logging.getLogger(__name__)


def prepare(cfg: DictConfig, datasets: dict[str, Dataset]) -> Member:
    """The network that a job is to train; a data set that many jobs name is read once.

    Raises `UserError` as a run of the job would.
    """
    config.validate(cfg)
    check_accelerator(cfg.trainer.accelerator)
    which = str({name: value for name, value in cfg.data.items() if name not in USE})
    if which not in datasets:
        found = dataset(cfg)
        datasets[which] = replace(found, train=cache(found.train))
    return Member(cfg, assemble(cfg, datasets[which]), pruning_of(cfg))


def train(members: Sequence[Member]) -> None:
    """Train members, those of one shape together."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(member.shape, []).append(member)
    for group in groups.values():
        Group(group).fit()


def finish(cfg: DictConfig, member: Member, *, start: float) -> float | list[float]:
    """Leave what a run leaves, inside the Hydra job; return what a run returns."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with recorded(cfg, run_dir, member.data, live=False) as store:
        for row in member.rows:
            store.post("log_row", row)
        if member.error is not None:
            raise member.error
        for name, file in (("best", BEST), ("last", LAST)):
            torch.save(_checkpoint(member, name), run_dir / file)
        trained = Trained(cfg, run_dir, member.data, member.network, member.rows)
        reached = conclude(trained, store, Clock(start, start, start + member.seconds))
    for judge in member.pruning:
        judge.raise_if_pruned()
    return returned(cfg, reached)


def _checkpoint(member: Member, name: str) -> dict[str, Any]:
    epoch = member.best_epoch if name == "best" else len(member.rows) - 1
    return {
        "epoch": epoch,
        "global_step": member.rows[epoch]["step"],
        "state_dict": {f"network.{k}": v for k, v in member.states[name].items()},
    }
