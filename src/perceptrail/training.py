"""The one place where a run is wired together: data, network, training, records."""

import random
import signal
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from perceptrail import assignment, config, recorder, runs
from perceptrail.build import build, dataset, naming, task_name, use
from perceptrail.callbacks import (
    Checkpoints,
    EpochSeed,
    History,
    ScheduledDropout,
    StopOnDivergence,
)
from perceptrail.classifier import Classifier
from perceptrail.conclusion import Clock, Trained, conclude
from perceptrail.config import OWN
from perceptrail.data.dataset import Dataset
from perceptrail.data.module import Data, DataModule
from perceptrail.data.stream import Stream
from perceptrail.distillation import teaching
from perceptrail.errors import UserError
from perceptrail.invocation import command_line, typed
from perceptrail.model import MLP
from perceptrail.network import KEYS, Module, Network, fault, make, prepare
from perceptrail.passwords import masked
from perceptrail.provenance import flat, origin
from perceptrail.recorder import LateLog, RunLog
from perceptrail.tasks import Task
from perceptrail.trainer import blaming, check_callback, chunk, make_trainer, part, stepping, wake

if TYPE_CHECKING:
    from perceptrail.search.pruning import Pruning


def run(cfg: DictConfig) -> float | list[float]:
    """Train as `cfg` says, record it, and return the best value of the monitored metric.

    With `cfg.objectives`, the best values of those metrics instead.

    Runs inside a Hydra job, whose output directory becomes the run directory. Raises `UserError`
    for what the user can put right, `KeyboardInterrupt` when Ctrl-C was pressed, and
    `optuna.TrialPruned` when the search that the run belongs to has given it up.
    """
    config.validate(cfg)
    clock = Clock.of_job()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    until_awake = wake(cfg.trainer)
    named = _named_callbacks(cfg)
    parts = assemble(cfg, dataset(cfg), named.values())
    data, network, learned = parts[:3]
    history = History()
    checkpoints = Checkpoints(run_dir, monitor=cfg.monitor.metric, mode=cfg.monitor.mode)
    pruning = pruning_of(cfg)
    dropout: list[Callback] = []
    module: LightningModule
    if task_name(cfg) == OWN:
        assert isinstance(network, Module) and isinstance(network.body, LightningModule)
        module = network.body
    else:
        module = _classifier(cfg, parts, named.values())
        with naming("dropout"):
            dropout = [ScheduledDropout(**cfg.dropout)]
    own = [EpochSeed(cfg.seed), *named.values(), *dropout, StopOnDivergence()]
    loggers = [build(n, key=f"logger.{k}") for k, n in (cfg.get("logger") or {}).items()]
    trainer = make_trainer(cfg, run_dir, [*own, *pruning, history, checkpoints], loggers=loggers)
    for logger in loggers:
        logger.log_hyperparams({k: masked(v) for k, v in flat(cfg).items()})  # no passwords
    until_awake()
    last = run_dir / runs.LAST
    if last.exists():
        _check_fits(last, module, parts)
    fit = partial(trainer.fit, module, data, ckpt_path=last if last.exists() else None)
    if not trainer.is_global_zero:  # a further process of a distributed training: computes, no more
        fit()
        return float("nan")

    with recorded(cfg, run_dir, data) as log, _interruptible(run_dir):
        history.receive = partial(log.post, "log_row")
        clock.start_fit()
        with blaming(named):
            fit()
        clock.end_fit()
        left = Trained.stored(
            cfg, run_dir, data=data, network=network, task=learned, rows=history.rows
        )
        reached = conclude(left, log, clock)
    for callback in pruning:
        callback.end(reached)
    return returned(cfg, reached)


def _check_fits(last: Path, module: LightningModule, parts: "Parts") -> None:
    """Check that a run goes on with the network and the optimizer that its checkpoint holds."""
    try:
        stored = torch.load(last, map_location="cpu", weights_only=False, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"{runs.shown(last)}: is damaged; without it the run begins anew"
        ) from error
    shapes = [
        {name: [*value.shape] for name, value in state.items() if torch.is_tensor(value)}
        for state in (stored["state_dict"], module.state_dict())
    ]
    for name in sorted({*shapes[0], *shapes[1]}):
        old, new = (str(state.get(name, "not there")) for state in shapes)
        if old != new:
            raise UserError(
                f"{runs.shown(last)}: holds another network, whose {name} is {old} instead of "
                f"{new}; go on with the model and the data that the run was started with"
            )
    if parts.optimizer is not None:
        made = parts.optimizer(parts.network.parameters())
        groups = stored["optimizer_states"][0]["param_groups"], made.param_groups
        known, wanted = ({*own[0]} - {"initial_lr"} for own in groups)
        if known != wanted:
            raise UserError(
                f"{runs.shown(last)}: holds the state of another optimizer than "
                f"{type(made).__name__}; go on with the one that the run was started with"
            )


class Parts(NamedTuple):
    """What a run is put together from."""

    data: Data
    network: Network
    task: Task
    optimizer: "partial[Any] | None"  # a function of the parameters; one's own module has its own
    schedule: "partial[Any] | None"


def assemble(cfg: DictConfig, found: Dataset, callbacks: Iterable[Callback] = ()) -> Parts:
    """The parts that `cfg` describes, for a data set; the seed alone decides on their numbers.

    `callbacks` are those that may have to see each batch.
    """
    assignment.check(cfg, found)
    random.seed(cfg.seed)
    np.random.seed(cfg.seed)
    torch.manual_seed(cfg.seed)
    own = task_name(cfg) == OWN
    size = None if own else chunk(cfg.trainer, callbacks)
    kind = DataModule if found.streamed is None else Stream
    data: Data = kind(found, seed=cfg.seed, chunk=size, **part(cfg.trainer), **use(cfg))
    data.setup("fit")
    learned = assignment.assigned(cfg, data)
    if own:
        module = _own(cfg, data)
        data.seen = module.seen
        return Parts(data, module, learned, None, None)
    network = _network(cfg, data)
    last = (data.n_train - 1) % data.batch_size + 1
    if last == 1 and any(isinstance(layer, nn.BatchNorm1d) for layer in network.modules()):
        raise UserError(
            f"data.batch_size={data.batch_size}: leaves one of the {data.n_train} examples alone "
            "in the last batch, which batch norm cannot be trained on; take another size"
        )
    return Parts(data, network, learned, *_optimizer(cfg, network))


def _network(cfg: DictConfig, data: Data) -> Network:
    """The module that `model._target_` names, else an MLP; with what is to be done with it."""
    node = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(node, dict)
    own = {str(key): node.pop(key, None) for key in KEYS}
    arguments = {str(key): value for key, value in node.items()}
    with naming("model"):
        if "_target_" in arguments:
            made = _made(arguments, data)
            if (wrong := fault(made, inputs=data.inputs, outputs=data.outputs)) is not None:
                raise UserError(f"model._target_={arguments['_target_']}: {wrong}")
            network: Network = made
        else:
            network = MLP(data.inputs, data.outputs, mean=data.mean, std=data.std, **arguments)
    if any(own.values()):
        prepare(
            network,
            weights=own["weights"],
            fresh=own["fresh"] or (),
            frozen=own["frozen"] or (),
        )
    if isinstance(network, Module) and _moves(cfg, network) and not network.dropouts:
        raise UserError(
            f"dropout={cfg.dropout.schedule}: the network must have layers of dropout whose rate "
            "is its argument model.dropout"
        )
    return network


def _made(node: Mapping[str, Any], data: Data, *, key: str = "model") -> Module:
    return make(node, shape=data.shape, outputs=data.outputs, mean=data.mean, std=data.std, key=key)


def _own(cfg: DictConfig, data: Data) -> Module:
    """The LightningModule that `task._target_` names, as the network of a run."""
    container = OmegaConf.to_container(cfg.task, resolve=True)
    assert isinstance(container, dict)
    node = {str(key): value for key, value in container.items() if key != "name"}
    with naming("task"):
        network = _made(node, data, key="task")
    if not isinstance(network.body, LightningModule):
        raise UserError(
            f"task._target_={node['_target_']}: must make a LightningModule, not a "
            f"{type(network.body).__name__}"
        )
    return network


def _classifier(cfg: DictConfig, parts: Parts, callbacks: Iterable[Callback]) -> Classifier:
    data, network, learned, optimizer, schedule = parts
    assert optimizer is not None
    with naming("distillation"):
        relabel = teaching(data, **cfg.distillation)
    with naming("regularization"):
        return Classifier(
            network,
            task=learned,
            extras=assignment.extras(cfg, learned),
            optimizer=optimizer,
            schedule=schedule,
            relabel=relabel,
            graphs=cfg.trainer.cuda_graphs and not _moves(cfg, network),
            monitor=cfg.monitor.metric,
            **{**cfg.regularization, **stepping(cfg.trainer, callbacks)},
        )


def _moves(cfg: DictConfig, network: Network) -> bool:
    """Whether rates of dropout change that are numbers to the network."""
    return isinstance(network, Module) and cfg.dropout.schedule != "constant"


def returned(cfg: DictConfig, reached: Mapping[str, float]) -> float | list[float]:
    """What a run returns of the best values that it reached."""
    if cfg.objectives is None:
        return reached[cfg.monitor.metric]
    if unknown := [name for name in cfg.objectives if name not in reached]:
        raise UserError(
            f"objectives={cfg.objectives}: {unknown[0]} is none of what the run, which is stored, "
            f"has come to: {', '.join(sorted(reached))}"
        )
    return [reached[name] for name in cfg.objectives]


@contextmanager
def _interruptible(run_dir: Path) -> Iterator[None]:
    """Say how to go on after an interruption; Lightning's exit on Ctrl-C becomes the key again."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"\nInterrupted. Go on with: {typed('train')} {runs.argument('resume', run_dir)}")
        if isinstance(stop, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None


def _optimizer(cfg: DictConfig, network: Network) -> tuple[Any, Any]:
    """What makes the optimizer, and the schedule; both tried, so that they work later."""
    make = build(cfg.optimizer, key="optimizer")
    with naming("optimizer"):
        optimizer = make(network.parameters())
    schedule = build(cfg.schedule, key="schedule")
    with naming("schedule"):
        schedule(optimizer if isinstance(schedule.func, type) else 0.0)
    # Without Hydra's check of the target, now made: 0.5 ms, and this is called before every step.
    return make, partial(schedule.func, *schedule.args, **schedule.keywords)


def _named_callbacks(cfg: DictConfig) -> dict[str, Callback]:
    chosen = {str(name): node for name, node in cfg.callbacks.items() if node}
    named = {name: build(node, key=f"callbacks.{name}") for name, node in chosen.items()}
    for name, callback in named.items():
        if task_name(cfg) != OWN:
            check_callback(name, callback)
    return named


def pruning_of(cfg: DictConfig) -> "list[Pruning]":
    """The one judge of a search's trial; none for a run that is no trial."""
    if cfg.trial is None:
        return []
    from perceptrail.search import trial
    from perceptrail.search.pruning import Pruning

    return [Pruning(trial(cfg), monitor=cfg.monitor.metric)]


@contextmanager
def recorded(cfg: DictConfig, run_dir: Path, data: Data, *, live: bool = True) -> Iterator[RunLog]:
    """Record what happens inside as one MLflow run, and how it ends.

    If not `live`, all is written at the end, at once.
    """
    record = runs.open_record(run_dir)
    if cfg.tracking.uri is None:
        yield RunLog(None, None)
        return
    line = recorder.connect(cfg.tracking.uri, cfg.tracking.experiment)
    choices = HydraConfig.get().runtime.choices
    tags, texts = origin(command_line())
    if cfg.trial is not None:
        tags = tags | {"trial.study": cfg.trial.study, "trial.number": str(cfg.trial.number)}
    opening = {
        "key": record["key"],
        "name": f"{choices['data']}-{choices['model'] or OWN}-{record['key'][:4]}",
        "run_dir": str(run_dir),
        "owner": line.client,
        "tags": tags,
        "parent": cfg.tracking.parent,
    }
    whole = not live and not cfg.tracking.uri.startswith("http")
    if whole:
        run_id = uuid.uuid4().hex
    else:
        load = live and cfg.tracking.system_metrics
        run_id = line.call("open_run", **opening, system_metrics=load)
    store = {"uri": masked(cfg.tracking.uri), "experiment": cfg.tracking.experiment}
    runs.write_json(run_dir / runs.RECORD, {**record, "run_id": run_id, **store})
    late = partial(LateLog, opening=opening if whole else None)
    log = RunLog(line, run_id) if live else late(line, run_id)
    secret = ("trial.storage",)  # may hold a password
    log.post("log_params", {k: v for k, v in flat(cfg).items() if k not in secret})
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
    with log.closing():
        yield log
