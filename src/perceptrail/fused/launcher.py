"""A Hydra launcher that trains jobs of one network shape as one stack, and the others in turn."""

import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from perceptrail import recorder
from perceptrail.config import Plain, at, plain
from perceptrail.errors import UserError
from perceptrail.runs import RECORD
from perceptrail.search.jobs import Composer, as_job, run_job, set_imports_aside

if TYPE_CHECKING:
    from perceptrail.data.dataset import Dataset
    from perceptrail.fused.member import Member
    from perceptrail.network import Module

log = logging.getLogger(__name__)

_OPTIMIZERS = tuple(f"torch.optim.{name}" for name in ("SGD", "Adam", "AdamW", "RMSprop"))
_SCHEDULES = tuple(f"perceptrail.schedules.{name}" for name in ("constant", "cosine", "one_cycle"))

# A job that has other values than these is trained alone.
VALUES: Mapping[str, tuple[Any, ...]] = {
    "resume": (None,),
    "logger": (None,),
    "data.augment": (None,),
    "distillation.teacher": (None,),
    "optimizer._target_": _OPTIMIZERS,
    "schedule._target_": _SCHEDULES,
    "task.name": ("classification", "regression", "multilabel"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda"),
    "trainer.devices": (1,),
    "trainer.strategy": ("auto",),
    "trainer.precision": ("32-true",),
    "callbacks.early_stopping._target_": (None, "pytorch_lightning.callbacks.EarlyStopping"),
}
# And one that has further keys, unless they are null; a module of one's own has its arguments.
KEYS: Mapping[str, set[str]] = {
    "model": {
        *("hidden", "activation", "dropout", "input_dropout", "norm", "noise", "input_noise"),
        *("weights", "fresh"),
    },
    "task": {"class_weights", "loss"},
    "regularization": {"label_smoothing", "l1", "l2", "gradient_clip", "max_norm"},
    "distillation": {"weight"},
    "dropout": {"schedule", "start", "end", "cutoff"},
    "trainer": {"_target_", "max_epochs", "deterministic", "matmul_precision", "cuda_graphs"},
    "callbacks": {"early_stopping", "progress"},
    "callbacks.early_stopping": {"monitor", "mode", "patience", "min_delta", "check_finite"},
}
TRAINING = {"seed", "monitor", "data", "optimizer", "schedule", "tracking", *KEYS} - {
    "callbacks.early_stopping"
}


def obstacle(told: Plain) -> str | None:
    """Why a job with this configuration cannot be part of a stack, if it cannot."""
    if at(told, "task.name") == "own":
        return "task=own"
    if not set(told) >= TRAINING:
        return "not a training run of perceptrail"
    for key, allowed in VALUES.items():
        value = at(told, key)
        if value not in allowed:
            return f"{key}={value}"
    for key, known in KEYS.items():
        if key == "model" and at(told, "model._target_"):
            continue
        for name, value in (at(told, key) or {}).items():
            if value and name not in known and f"{key}.{name}" not in VALUES:
                return f"{key}.{name}"
    return None


def launch(
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
    *,
    context: HydraContext,
    function: TaskFunction,
    config: DictConfig,
    processes: int | None,
) -> list[JobReturn]:
    """Run jobs as Hydra's BasicLauncher would, and faster where they can be trained together.

    What can be trained together is trained first, and leaves what its training has led to; then the
    others are run in turn, as `function` has it.
    """
    if processes is not None and processes < 1:
        raise UserError(
            f"hydra.launcher.processes={processes}: must be an integer of at least 1, or null"
        )
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    start = time.time()
    log.info("Launching %d jobs, those of one shape together", len(job_overrides))
    assert isinstance(context.config_loader, QuickLoader)
    configs = context.config_loader.take(job_overrides)
    for number, own in enumerate(configs, start=initial_job_idx):
        with open_dict(own):
            own.hydra.job.num = own.hydra.job.id = number
    titles = [
        f"\t#{number} : {' '.join(filter_overrides(overrides))}"
        for number, overrides in enumerate(job_overrides, start=initial_job_idx)
    ]
    members, done = _prepare(configs, first=initial_job_idx), dict[int, JobReturn]()
    for place in members:
        log.info(titles[place])
    if members:
        from perceptrail.fused.ending import end
        from perceptrail.fused.run import train

        train(list(members.values()), processes=processes)
        jobs = {place: (configs[place], member) for place, member in members.items()}
        done = end(jobs, context=context, start=start, processes=processes)
    for place, own in enumerate(configs):
        if place not in done:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
            log.info(titles[place])
            done[place] = run_job(own, function=function, context=context)
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    recorder.settle()
    return [done[place] for place in range(len(configs))]


def _prepare(configs: Sequence[DictConfig], *, first: int) -> "dict[int, Member]":
    """What can be trained together, by the jobs' places; says what cannot, and why."""
    members: dict[int, Member] = {}
    alone: dict[str, list[str]] = {}
    datasets: dict[str, Dataset] = {}
    firsts: dict[Hashable, Module] = {}
    for place, config in enumerate(configs):
        with as_job(config):
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
            told = plain(config)
            reason = "an earlier start of it" if (folder / RECORD).exists() else obstacle(told)
            if reason is None:
                from perceptrail.fused.run import prepare  # imports PyTorch

                try:
                    members[place] = prepare(config, told, datasets, firsts)
                except (UserError, OmegaConfBaseException, OSError) as error:
                    reason = str(error)
                set_imports_aside()
        if reason is not None:
            alone.setdefault(reason, []).append(f"#{first + place}")
    for reason, numbers in alone.items():
        log.info("Alone, because of %s: %s", reason, " ".join(numbers))
    return members


class QuickLoader(ConfigLoaderImpl):
    """A loader with a `Composer` for jobs, which keeps what Hydra's sweeper has composed."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.__dict__ |= loader.__dict__
        self.composer = Composer(loader, master)
        self._checked: dict[tuple[str, ...], list[DictConfig]] = {}

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """The configuration of a job."""
        config = self.composer.compose(sweep_overrides)
        self._checked.setdefault(tuple(sweep_overrides), []).append(config)
        return config

    def take(self, jobs: Sequence[Sequence[str]]) -> list[DictConfig]:
        """The configurations of jobs, each an object of its own."""
        checked, self._checked = self._checked, {}
        return [
            found.pop() if (found := checked.get(tuple(job))) else self.composer.compose(job)
            for job in jobs
        ]
