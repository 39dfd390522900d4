"""Objects out of the configuration: the only caller of `hydra.utils.instantiate`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from perceptrail.config import OWN
from perceptrail.data.dataset import Dataset
from perceptrail.errors import UserError

CLASSES = "classification"

# Keys of the group `data` that say how the data are used; the others say which they are.
USE = ("batch_size", "val_size", "train_size", "augment")
STREAMING = ("stream", "workers")

# How Hydra says that it finds no target, and at which key below the node.
_NO_TARGET = re.compile(r"Error locating target '(.*?)'(?:.*\nfull_key: (\S+))?")


def build(node: DictConfig, *, key: str, **facts: Any) -> Any:
    """Make the object that a config node describes, with further arguments only the code knows.

    Raises `UserError` naming `key` when the object refuses its arguments.
    """
    try:
        return instantiate(node, **facts)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError | OSError):
            raise cause from None
        reason = str(cause or error).strip().splitlines()[0]
        if absent := _NO_TARGET.match(str(error)):
            target, within = absent.groups()
            below = (within or "").removeprefix(key).strip(".")  # from the root, if it has one
            where = ".".join(filter(None, [key, below, "_target_"]))
            why = str(cause).splitlines()[1]
            raise UserError(f"{where}={target}: cannot be imported ({why})") from error
        raise UserError(f"{key}: {reason}") from error


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Say which part of the configuration was refused: a `UserError` instead of what was raised."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{key}: {str(error).strip().splitlines()[0]}") from error


def which_data(cfg: DictConfig) -> dict[str, Any]:
    """What says which data set it is; targets that are not said to be either are as the task's."""
    which = {str(key): value for key, value in cfg.data.items() if key not in (*USE, *STREAMING)}
    if which.get("kind", "") is None and task_name(cfg) not in (CLASSES, OWN):
        which["kind"] = "numbers"
    return which


def task_name(cfg: DictConfig) -> str:
    """The task; of runs that were stored before there were others, classification."""
    return str(OmegaConf.select(cfg, "task.name", default=CLASSES))


def dataset(cfg: DictConfig) -> Dataset:
    """The data set that the group `data` names, fetched if need be."""
    which = DictConfig(which_data(cfg))
    made = build(which, key="data")
    if isinstance(made, Dataset):
        return made
    from perceptrail.data import arrays, stream  # import Lightning

    name, said = which["_target_"].rpartition(".")[2], f"data._target_={which['_target_']}"
    how = {key: cfg.data.get(key) for key in STREAMING}
    source = stream.source_of(made, wanted=how["stream"], workers=how["workers"], said=said)
    if source is not None:
        return stream.described(source, name=name, said=said)
    return arrays.of_result(made, target=which["_target_"])


def use(cfg: DictConfig) -> dict[str, Any]:
    """How the data are used, as `DataModule` takes it: transforms that augment them are made."""
    chosen = {key: cfg.data[key] for key in USE}
    if isinstance(chosen["augment"], ListConfig):
        chosen["augment"] = [
            build(DictConfig(OmegaConf.to_container(node, resolve=True)), key=f"data.augment[{k}]")
            for k, node in enumerate(chosen["augment"])
        ]
    return chosen
