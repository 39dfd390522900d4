"""What a configuration may hold: one table of rules, checked before anything heavy is imported."""

import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perceptrail import runs
from perceptrail.errors import UserError, did_you_mean
from perceptrail.measures import KINDS, MEASURES, available, measure
from perceptrail.passwords import masked, unmasked
from perceptrail.schedules import DROPOUT_SCHEDULES

OWN = "own"  # the task of a LightningModule of one's own
Plain = Mapping[str, Any]
FREE_BYTES = 64 * 2**20  # a run's checkpoints, model, figures and log, with room to spare


@dataclass(frozen=True)
class Rule:
    """What a value must be: a test, and the words that say so."""

    allowed: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def or_null(self) -> "Rule":
        """The same rule, which null also satisfies."""
        return Rule(f"{self.allowed}, or null", lambda v: v is None or self.holds(v), self.names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: float = float("inf")) -> Rule:
    bounds = f"of at least {low}" if high == float("inf") else f"from {low} to {high:.0f}"
    return Rule(f"an integer {bounds}", lambda v: _is_integer(v) and low <= v <= high)


def _above(low: float) -> Rule:
    return Rule(f"a number above {low:g}", lambda v: _is_number(v) and low < v < float("inf"))


def _at_least(low: float) -> Rule:
    words = f"a number of at least {low:g}"
    return Rule(words, lambda v: _is_number(v) and low <= v < float("inf"))


def _one_of(names: Iterable[str]) -> Rule:
    known = tuple(names)
    return Rule(f"one of {', '.join(known)}", lambda v: v in known, known)


def _activations() -> Rule:
    from perceptrail.activations import ACTIVATIONS  # imports NumPy

    return _one_of(ACTIVATIONS)


def _tables() -> Rule:
    from perceptrail.data.sets import TABLES  # imports NumPy

    return _one_of(TABLES)


def _left_out(instead: str) -> Rule:
    return Rule(f"left out: {instead}", lambda v: False)


_SHARE = Rule("a number in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
_PART = Rule("a number in (0, 1)", lambda v: _is_number(v) and 0 < v < 1)
_FLAG = Rule("true or false", lambda v: isinstance(v, bool))
_TEXT = Rule("a text", lambda v: isinstance(v, str) and v != "")
_WIDTHS = Rule(
    "a list of positive integers, such as [256, 128], or [] for no hidden layer",
    lambda v: isinstance(v, list) and all(_is_integer(w) and w > 0 for w in v),
)
_VAL_SIZE = Rule(
    "a count of examples of at least 1, or a share of the training set in (0, 1)",
    lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v < 1),
)
_DEVICES = Rule(
    "a count of at least 1, auto, or a list of device numbers",
    lambda v: v == "auto" or (_is_integer(v) and v >= 1) or isinstance(v, list),
)
_BATCHES = Rule(
    "a count of batches of at least 1, or a share of them in (0, 1]",
    lambda v: (_is_integer(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
)
_VALIDATED = "every epoch is validated: checkpoints, early stopping and searches go by it"
REFUSED = {  # callbacks of Lightning's that would do nothing, or harm, and what is there instead
    "StochasticWeightAveraging": "callbacks=averaged trains an average of the weights",
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches is the same all along",
    "LearningRateFinder": "python lr_find.py tells a rate before the training",
    "BatchSizeFinder": "data.batch_size says it; data that are resident fit, or do not",
    "ModelCheckpoint": "best.ckpt and last.ckpt are written after every epoch",
}
_MIRRORS = Rule(
    "a list of URLs and folders, such as [/data/mnist]",
    lambda v: isinstance(v, list) and all(isinstance(m, str) for m in v),
)
_NAMES = Rule(
    "a list of names of parts of the network, or patterns of them, such as [head, features.0.*]",
    lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
)
_LIST = Rule(
    "a list of columns, such as [width, height]",
    lambda v: isinstance(v, list) and all(_TEXT.holds(name) for name in v),
)
_COLUMNS = Rule(
    "a column, or a list of columns, such as [width, height]",
    lambda v: _TEXT.holds(v) or (_LIST.holds(v) and len(v) > 0),
)


def _is_target(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


_FILE = Rule(
    "a file, or {_target_: package.function} that returns what it would hold",
    lambda v: _TEXT.holds(v) or _is_target(v),
)
_KNOWN = tuple({f"val/{name}": 0 for kind in KINDS.values() for name in ("loss", *kind.measures)})
_METRICS = tuple({name: None for task in KINDS for name in available(task)})
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}


def _is_store(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    if parts.scheme == "sqlite":  # one in memory would go with the process that records
        return address.startswith("sqlite:///") and parts.path not in ("/", "/:memory:")
    return parts.scheme.partition("+")[0] in _PORTS


_STORE = Rule(
    "a database (sqlite:///path, postgresql://...) or the address of an MLflow server (http://...)",
    lambda v: isinstance(v, str) and _is_store(v),
)

# To a module of one's own these may mean something else.
OF_MLP: Mapping[str, Rule | Callable[[], Rule]] = {
    "model.hidden": _WIDTHS,
    "model.activation": _activations,
    "model.dropout": _SHARE,
    "model.input_dropout": _SHARE,
    "model.noise": _at_least(0),
    "model.input_noise": _at_least(0),
    "model.norm": _one_of(["batch", "layer"]).or_null(),
}

OF_ALL_TASKS = ("task.name", "task._target_")

# What every data set has; the rest may mean something else to a function of one's own.
OF_ALL_DATA = tuple(
    f"data.{name}"
    for name in ("_target_", "val_size", "train_size", "batch_size", "stream", "workers")
)

RULES: Mapping[str, Rule | Callable[[], Rule]] = {
    "seed": _integer(0, 2**32 - 1),
    "figures": _FLAG,
    "task.name": _one_of([*KINDS, OWN]),
    "task.loss": Rule(
        "null for the usual one, mse, mae or huber of numbers, or {_target_: my.Loss}",
        lambda v: v in (None, "mse", "mae", "huber") or _is_target(v),
    ),
    "task._target_": _TEXT,
    "task.class_weights": Rule(
        "null, balanced, or a list with a number of at least 0 for each class",
        lambda v: (
            v in (None, "balanced")
            or (isinstance(v, list) and all(_is_number(w) and w >= 0 for w in v))
        ),
    ),
    "metrics": Rule(
        f"a list of some of {', '.join(_METRICS)}",
        lambda v: isinstance(v, list) and all(name in _METRICS for name in v),
        _METRICS,
    ),
    "monitor.metric": Rule(
        f"train/loss, or one of {', '.join(_KNOWN)}, or another metric as val/NAME",
        lambda v: v == "train/loss" or v in [f"val/{name}" for name in MEASURES],
        ("train/loss", *_KNOWN),
    ),
    "monitor.mode": _one_of(["min", "max"]),
    "regularization.label_smoothing": _SHARE,
    "regularization.l1": _at_least(0),
    "regularization.l2": _at_least(0),
    "regularization.adversarial": _at_least(0),
    "distillation.teacher": _TEXT.or_null(),
    "distillation.weight": Rule("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1),
    "regularization.gradient_clip": _above(0).or_null(),
    "regularization.max_norm": _above(0).or_null(),
    "data.name": _TEXT,
    "data.dir": _TEXT,
    "data.val_size": _VAL_SIZE,
    "data.train_size": _integer(1).or_null(),
    "data.batch_size": _integer(1),
    "data.points": _integer(8),
    "data.bits": _integer(2, 20),
    "data.noise": _at_least(0),
    "data.mirrors": _MIRRORS,
    "data.test_size": _PART,
    "data.table": _tables,
    "data.path": _FILE,
    "data.target": _COLUMNS,
    "data.features": _LIST.or_null(),
    "data.categorical": _LIST,
    "data.test": Rule(
        f"a share in (0, 1), or {_FILE.allowed}", lambda v: _PART.holds(v) or _FILE.holds(v)
    ),
    "data.kind": _one_of(["classes", "numbers"]).or_null(),
    "data.separator": _TEXT.or_null(),
    "data.size": _integer(1).or_null(),
    "data.mode": _one_of(["colour", "grey"]),
    "data.download": _FLAG,
    "data.y": _TEXT.or_null(),
    "data._target_": _TEXT,
    "data.stream": _FLAG.or_null(),
    "data.workers": _integer(0).or_null(),
    "data.arms": _integer(2),
    "data.turns": _above(0),
    "data.factor": _above(0),
    **OF_MLP,
    "model._target_": _TEXT,
    "model.weights": _TEXT.or_null(),
    "model.fresh": _NAMES.or_null(),
    "model.frozen": _NAMES.or_null(),
    "optimizer.lr": _above(0),
    "optimizer.weight_decay": _at_least(0),
    "schedule.warmup": _SHARE,
    "schedule.final": Rule("a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1),
    "schedule.factor": _PART,
    "schedule.patience": _integer(0),
    "dropout.schedule": _one_of(DROPOUT_SCHEDULES),
    "dropout.start": _SHARE,
    "dropout.end": _SHARE,
    "dropout.cutoff": _SHARE,
    "callbacks.early_stopping.patience": _integer(1),
    "callbacks.early_stopping.min_delta": _at_least(0),
    "callbacks.averaging.horizon": _PART,
    "trainer.accelerator": _one_of(["auto", "cpu", "gpu", "cuda", "mps", "tpu"]),
    "trainer.devices": _DEVICES,
    "trainer.max_epochs": _integer(1),
    "trainer.precision": _one_of(["32-true", "bf16-mixed"]),
    "trainer.matmul_precision": _one_of(["highest", "high", "medium"]),
    "trainer.cuda_graphs": _FLAG,
    "trainer.max_steps": Rule(
        "-1, or an integer of at least 1", lambda v: _is_integer(v) and (v == -1 or v >= 1)
    ),
    "trainer.gradient_clip_val": _above(0).or_null(),
    "trainer.gradient_clip_algorithm": _one_of(["norm", "value"]),
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.limit_train_batches": _BATCHES.or_null(),
    "trainer.limit_val_batches": _BATCHES.or_null(),
    "trainer.overfit_batches": Rule(
        f"0, or {_BATCHES.allowed}", lambda v: v == 0 or _BATCHES.holds(v)
    ),
    "trainer.check_val_every_n_epoch": _left_out(_VALIDATED),
    "trainer.val_check_interval": _left_out(_VALIDATED),
    "trainer.enable_checkpointing": _left_out("a run can always be resumed"),
    "trainer.barebones": _left_out("a run without metrics has no best weights"),
    "trainer.model_registry": _left_out("the model is in MLflow, a search's best in its registry"),
    "trainer.use_distributed_sampler": _left_out("each process has its share of every epoch"),
    "trainer.default_root_dir": _left_out("hydra.run.dir says it"),
    "trainer.logger": _left_out("the group logger says it, as in logger=csv"),
    "trainer.callbacks": _left_out("the group callbacks says it, as in +callbacks.NAME._target_="),
    "trial": Rule(
        "what a search tells its runs, {study, number, storage}",
        lambda v: isinstance(v, dict) and {"study", "number", "storage"} <= v.keys(),
    ).or_null(),
    "objectives": Rule(
        "a list of metrics, as [val/loss,parameters]",
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(name, str) for name in v),
    ).or_null(),
    "tracking.uri": _STORE.or_null(),
    "tracking.experiment": _TEXT.or_null(),
    "tracking.system_metrics": _FLAG,
    "run": _TEXT,
    "image": _TEXT.or_null(),
    "input": _TEXT.or_null(),
    "output": _TEXT.or_null(),
    "format": _one_of(["onnx", "torchscript", "torch_export"]),
    "separator": _TEXT.or_null(),
}

KEYS = {key.partition(".")[0] for key in RULES} | {
    "resume",
    "logger",
    "hydra",
}

GROUPS = {key.partition(".")[0] for key in RULES if "." in key}

_ABSENT = object()


def validate(cfg: DictConfig, told: Plain | None = None) -> None:
    """Check every value that has a rule, and that no key beside them looks like one misspelt.

    `told` is what `plain` makes of it, where that is known. Raises `UserError` for the first that
    breaks its rule, naming key, value and what is allowed.
    """
    for name in {*map(str, cfg)} - KEYS - _added():
        if hint := did_you_mean(name, KEYS):
            raise UserError(f"{name}: there is no such key{hint}; with a plus it is your own")
    told = plain(cfg) if told is None else told
    _check_groups(told)
    for key, entry in RULES.items():
        value = at(told, key, _ABSENT)
        if value is _ABSENT or _is_ones_own(told, key):
            continue
        if value == "???":
            raise UserError(f"{key} is missing: give {key}=...")
        rule = entry if isinstance(entry, Rule) else entry()
        if not rule.holds(value):
            hint = did_you_mean(str(value), rule.names)
            raise UserError(f"{key}={_shown(value)}: must be {rule.allowed}{hint}")
    clips = ("regularization.gradient_clip", "trainer.gradient_clip_val")
    if all(at(told, key) is not None for key in clips):
        raise UserError(f"{clips[1]}: {clips[0]} bounds the gradient already; give one of them")
    metric, mode = (at(told, f"monitor.{name}") for name in ("metric", "mode"))
    known = metric and metric.rpartition("/")[2] in MEASURES
    if known and mode and (mode == "max") != measure(metric).highest:
        better = "max for an accuracy and min for a loss"
        if not metric.endswith(("/acc", "/loss")):
            better = f"max for {metric}" if measure(metric).highest else f"min for {metric}"
        raise UserError(f"monitor.mode={mode}: must be {better}; monitor.metric is {metric}")
    _check_task(told)


def _check_groups(told: Plain) -> None:
    """Check that what has keys has not been given a value in their place."""
    nodes = {group: told[group] for group in GROUPS & told.keys()}
    for group, node in nodes.items():
        if not isinstance(node, Mapping):
            raise UserError(
                f"{group}={_shown(node)}: has keys of its own, to be set as {group}.KEY=..."
            )
    for name, node in nodes.get("callbacks", {}).items():
        if not (node is None or isinstance(node, Mapping)):
            raise UserError(f"callbacks.{name}={_shown(node)}: must be null, or have a _target_")


def plain(cfg: DictConfig) -> Plain:
    """A configuration as Python's own dicts and lists, which are looked through a hundred times as
    fast; without Hydra's part.
    """

    def value(name: Any) -> Any:
        if OmegaConf.is_missing(cfg, name):
            return "???"
        node = cfg[name]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node

    return {str(name): value(name) for name in cfg if name != "hydra"}


def at(told: Plain, key: str, default: Any = None) -> Any:
    """The value of a dotted key, if it is there."""
    for name in key.split("."):
        if not isinstance(told, dict) or name not in told:
            return default
        told = told[name]
    return told


def _check_task(told: Plain) -> None:
    """Check that what is chosen goes with the task."""
    keys = ("task.name", "task.loss", "monitor.metric", "regularization.label_smoothing")
    task, loss, metric, smoothing = (at(told, key) for key in keys)
    if task is None or metric is None:
        return
    if task == OWN:
        _check_own(told)
        return
    for name, node in (told.get("callbacks") or {}).items():
        target = str(node.get("_target_")) if node else ""
        if (
            target.startswith("pytorch_lightning.")
            and (kind := target.rpartition(".")[2]) in REFUSED
        ):
            raise UserError(
                f"callbacks.{name}._target_={target}: must be left out: {REFUSED[kind]}"
            )
    chosen = told.get("metrics") or []
    for name in chosen:
        if name not in available(task):
            raise UserError(
                f"metrics={_shown(chosen)}: {name} does not go with task={task}, of which there "
                f"are {', '.join(available(task))}"
            )
    known = ["train/loss", *(f"val/{name}" for name in ("loss", *KINDS[task].measures))]
    known += [f"val/{name}" for name in chosen if name in MEASURES and f"val/{name}" not in known]
    if metric not in known:
        name = metric.rpartition("/")[2]
        cure = f"; metrics=[{name}] adds it" if name in available(task) else ""
        raise UserError(
            f"monitor.metric={metric}: must be one of {', '.join(known)} for task={task}{cure}"
        )
    if isinstance(loss, str) != (task == "regression") and not _is_target(loss):
        allowed = "mse, mae, huber" if task == "regression" else "null"
        raise UserError(
            f"task.loss={_shown(loss)}: must be {allowed} or {{_target_: my.Loss}} for task={task}"
        )
    if loss is not None and at(told, "task.class_weights") is not None:
        raise UserError("task.class_weights: must be null where the loss is one's own, task.loss")
    if smoothing and (task == "regression" or loss is not None):
        raise UserError(
            f"regularization.label_smoothing={smoothing}: must be 0 "
            "where the loss is not cross-entropy"
        )


def _check_own(told: Plain) -> None:
    """Check that nothing is said of what a LightningModule of one's own does itself."""
    for group in ("model", "optimizer", "schedule", "dropout"):
        if told.get(group):
            raise UserError(f"{group}: must be left out for task={OWN}, whose module has its own")
    keys = [f"regularization.{name}" for name in told["regularization"]]
    for key in ("metrics", "distillation.teacher", *keys):
        if value := at(told, key):
            raise UserError(f"{key}={_shown(value)}: must be left out for task={OWN}, likewise")


def _is_ones_own(told: Plain, key: str) -> bool:
    """Whether a key is an argument of a module or function of one's own, where it may mean more."""
    own_task = at(told, "task.name") == OWN
    if key == "monitor.metric" or (key.startswith("task.") and key not in OF_ALL_TASKS):
        return bool(own_task)
    if key in OF_MLP:
        return at(told, "model._target_") is not None
    if not key.startswith("data.") or key in OF_ALL_DATA:
        return False
    target = at(told, "data._target_")
    return isinstance(target, str) and not target.startswith(("perceptrail.", "???"))


def _added() -> set[str]:
    """The keys that were given with a plus: the user's own, whatever they look like."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return {key.lstrip("+").partition("=")[0].partition(".")[0] for key in given if key[0] == "+"}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def check_surroundings(cfg: DictConfig, run_dir: Path) -> None:
    """Check that there is room for a run and that the tracking store can be reached.

    Raises `UserError` naming the key, the value and what is wrong.
    """
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"hydra.run.dir={run_dir}: {folder} is a file, not a folder")
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise UserError(
            f"hydra.run.dir={run_dir}: only {free / 2**20:.0f} MiB free on that disk; "
            f"a run needs {FREE_BYTES / 2**20:.0f} MiB"
        )
    uri = OmegaConf.select(cfg, "tracking.uri")
    if uri is not None:
        _check_store(uri)


# What a run that is gone on with may have otherwise.
GOING_ON = ("resume", "trial", "tracking", "trainer.max_epochs", "trainer.max_steps")


def check_free(cfg: DictConfig, run_dir: Path) -> None:
    """Check that there is no run of other settings, whose results would be taken for this one's.

    Raises `UserError` naming one that differs. `resume` may change what it likes.
    """
    stored = run_dir / runs.SETTINGS / "config.yaml"
    if at(plain(cfg), "resume") or not ((run_dir / runs.RECORD).exists() and stored.is_file()):
        return
    new, old = (_leaves(c) for c in (cfg, OmegaConf.load(stored)))
    for key in sorted({*new, *old}):
        if new.get(key) != old.get(key) and not key.startswith(GOING_ON):
            place = runs.shown(run_dir)
            raise UserError(
                f"hydra.run.dir={place}: there is a run with {key}={old.get(key, 'null')} instead "
                f"of {new.get(key, 'null')}; {runs.argument('resume', run_dir)} goes on with it, "
                "another directory begins anew"
            )


def _leaves(cfg: Any) -> dict[str, str]:
    """Every value by its dotted key, as it was written, without passwords and Hydra's part."""

    def below(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from below(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, masked(_shown(node))  # as it is stored

    with_hydra = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(with_hydra, dict)
    return dict(below({k: v for k, v in with_hydra.items() if k != "hydra"}, ""))


def check_sweep(config: DictConfig) -> None:
    """Check likewise that the folder of a plain multirun holds no other one's runs.

    Raises `UserError`.
    """
    folder = Path(config.hydra.sweep.dir)
    stored = folder / "multirun.yaml"
    if not (str(config.hydra.sweeper._target_).endswith(".BasicSweeper") and stored.is_file()):
        return
    begun = OmegaConf.select(OmegaConf.load(stored), "hydra.overrides.task")
    asked = [
        [masked(o) for o in overrides or [] if not o.startswith(GOING_ON)]
        for overrides in (begun, config.hydra.overrides.task)
    ]
    if asked[0] != asked[1]:
        raise UserError(
            f"hydra.sweep.dir={runs.shown(folder)}: there are the runs of {shlex.join(asked[0])}; "
            "the same again goes on with them, another folder begins anew"
        )


def _check_store(uri: str) -> None:
    parts = urlsplit(unmasked(uri, None, key="tracking.uri"))
    if parts.scheme.startswith("sqlite"):
        folder = Path(parts.path.removeprefix("/")).parent
        if not folder.is_dir():
            raise UserError(f"tracking.uri={uri}: there is no folder {folder}")
    elif parts.hostname:
        try:
            port = parts.port or _PORTS[parts.scheme.partition("+")[0]]
            socket.create_connection((parts.hostname, port), timeout=5).close()
        except (OSError, ValueError) as error:
            raise UserError(
                f"tracking.uri={masked(uri)}: no server answers there ({error}); "
                "start it, give another address, or use tracking=none"
            ) from None


class Validate(Callback):
    """Hydra's hook before a run: a configuration in error ends the command, and leaves no trace."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a single run before its directory is made."""
        HydraConfig.instance().set_config(config)  # for ${hydra:...}; the run sets the same again
        try:
            validate(config)
            check_surroundings(config, Path(config.hydra.run.dir))
            check_free(config, Path(config.hydra.run.dir))
        except (UserError, OmegaConfBaseException) as error:
            # Hydra turns an Exception of a callback into a warning; an exit passes.
            sys.exit(str(error))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check where the runs of several are to be."""
        HydraConfig.instance().set_config(config)
        try:
            check_sweep(config)
        except (UserError, OmegaConfBaseException) as error:
            sys.exit(str(error))


OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:4], use_cache=True)
