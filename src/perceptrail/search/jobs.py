"""A trial as a Hydra job, composed and run in a fraction of the time that Hydra takes.

Hydra walks the defaults lists and reads every file anew for each job, copies the configuration five
times and writes it as YAML in Python. What is read depends only on the config groups that are
chosen: each choice of groups is composed once, and the other overrides are applied to a copy by
Hydra's own function. The job gets that copy, and libyaml writes the same text. Each interpolation
is parsed once.
"""

import copy
import gc
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from enum import Enum
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import omegaconf.base
import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, grammar_parser, open_dict, read_write
from omegaconf._utils import get_omega_conf_dumper
from omegaconf.basecontainer import BaseContainer

from perceptrail.passwords import masked

omegaconf.base.parse = cache(grammar_parser.parse)  # type: ignore[attr-defined]  # only read


class Composer:
    """Does what `load_sweep_config` of a config loader does for one master configuration."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._copies: dict[tuple[str, ...], Callable[[], DictConfig]] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job with these overrides."""
        parsed = self._parser.parse_overrides(list(overrides))
        chosen = tuple(o.input_line or "" for o in parsed if self._is_group(o))
        if chosen not in self._copies:
            composed = self._loader.load_sweep_config(self._master, list(chosen))
            self._copies[chosen] = _copies(composed)
        config = self._copies[chosen]()
        values = [o for o in parsed if not self._is_group(o)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = [o for o in overrides if not o.startswith("hydra.")]
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=[o for o in parsed if not o.key_or_group.startswith("hydra.")],
            kv_sep=naming.kv_sep,
            item_sep=naming.item_sep,
            exclude_keys=naming.exclude_keys,
        )
        return config

    def _is_group(self, override: Override) -> bool:
        name = override.key_or_group
        if name not in self._groups:
            self._groups[name] = bool(self._loader.get_group_options(name, None))
        return self._groups[name] and not isinstance(override.value(), dict)


@contextmanager
def as_job(config: DictConfig) -> Iterator[DictConfig]:
    """Have the `hydra` node of a job's configuration where its interpolations look for it."""
    singleton = HydraConfig.instance()
    before = singleton.cfg
    # The node itself where Hydra has a copy, which costs more than all the rest; its parent is
    # still what interpolations start from.
    hidden = DictConfig({}, flags={"no_deepcopy_set_nodes": True})
    hidden.__dict__["_content"] = {"hydra": config.hydra}
    singleton.cfg = hidden  # type: ignore[assignment]
    try:
        yield hidden
    finally:
        singleton.cfg = before


def run_job(config: DictConfig, *, function: TaskFunction, context: HydraContext) -> JobReturn:
    """Run one job of a multirun as Hydra's function of that name does."""
    hydra = config.hydra
    with as_job(config) as hidden, chdir(Path.cwd()):  # back here, wherever the job goes
        job = unfinished(config, hidden)
        folder, own = Path(hydra.runtime.output_dir), job.cfg
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(str(job.working_dir))
        _log_as(hydra)
        if hydra.output_subdir is not None:
            files = {"config": own, "hydra": hidden, "overrides": hydra.overrides.task}
            (folder / hydra.output_subdir).mkdir(exist_ok=True)
            for name, content in files.items():
                (folder / hydra.output_subdir / f"{name}.yaml").write_text(masked(_text(content)))
        with env_override(hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=function)
            try:
                job.return_value, job.status = function(own), JobStatus.COMPLETED
            except Exception as error:
                job.return_value, job.status = error, JobStatus.FAILED
        context.callbacks.on_job_end(config=config, job_return=job)
        set_imports_aside()
        return job


class _Logging(NamedTuple):
    """What the last job has set up: as its configuration tells it, and what came of that."""

    told: bytes
    level: int
    handlers: list[logging.Handler]
    files: dict[str | None, logging.FileHandler]  # those whose name the configuration makes up


_LAST: list[_Logging] = []  # or none


def _log_as(hydra: DictConfig) -> None:
    """Do what Hydra's `configure_log` does, in a quarter of the time where this job's logging
    differs from the last one's in the names of its files alone.
    """
    root, plain = logging.getLogger(), _plain(hydra.job_logging)
    named = {
        name: handler.pop("filename")
        for name, handler in (plain.get("handlers") or {}).items()
        if handler and "${" in str(handler.get("filename"))
    }
    told = pickle.dumps((plain, named, str(hydra.verbose)))
    for last in _LAST:
        if (last.told, last.level, last.handlers) == (told, root.level, root.handlers):
            for name, handler in last.files.items():
                file = Path(hydra.job_logging.handlers[name].filename)
                handler.baseFilename = str(file.absolute())
                before = handler.setStream(handler._open())
                if before is not None:
                    before.close()
            return
    _LAST.clear()
    configure_log(hydra.job_logging, hydra.verbose)
    files = {
        handler.name: handler
        for handler in root.handlers
        if type(handler) is logging.FileHandler and handler.name in named
    }
    if files.keys() == named.keys() and "${" not in str(plain):
        _LAST.append(_Logging(told, root.level, list(root.handlers), files))


def unfinished(config: DictConfig, hidden: DictConfig) -> JobReturn:
    """What there is to say of a job before it is run; inside `as_job`, with what that gives."""
    hydra = config.hydra
    folder = Path(hydra.sweep.dir, str(hydra.sweep.subdir)).absolute()
    with read_write(hydra.runtime), open_dict(hydra.runtime):
        hydra.runtime.output_dir = str(folder)
    OmegaConf.set_readonly(hydra, True)
    job = hydra.job
    changes = not version.base_at_least("1.2") if job.chdir is None else job.chdir
    return JobReturn(
        overrides=list(hydra.overrides.task),
        cfg=_without_hydra(config),
        hydra_cfg=hidden,
        working_dir=str(folder if changes else Path.cwd()),
        task_name=job.name,
    )


def _without_hydra(config: DictConfig) -> DictConfig:
    """The application's part of a configuration, of the same nodes."""
    own, nodes = DictConfig({}), config._content
    assert isinstance(nodes, dict)
    shared = {key: node for key, node in nodes.items() if key != "hydra"}
    own.__dict__["_content"] = shared
    for node in shared.values():
        node._set_parent(own)
    OmegaConf.set_struct(own, OmegaConf.is_struct(config))
    return own


def _copies(config: DictConfig) -> Callable[[], DictConfig]:
    """What makes copies of a configuration; from a pickle, a copy takes a fifth of the time."""
    try:
        return partial(pickle.loads, pickle.dumps(config))
    except pickle.PicklingError:  # Hydra has imported a plugin anew, with whose classes it was made
        return partial(copy.deepcopy, config)


@cache
def set_imports_aside() -> None:
    """Once, when a job has imported all: let no later garbage collection go through that."""
    gc.collect()
    gc.freeze()


class _Dumper(yaml.CSafeDumper):
    """libyaml with OmegaConf's rule for which texts need quotes."""


_Dumper.add_representer(str, cast(Any, get_omega_conf_dumper()).str_representer)


def _text(config: Any) -> str:
    """A configuration as YAML, part by part: most parts are the same in the next job's."""
    return _part((), pickle.dumps(_plain(config)))


@lru_cache(maxsize=1024)
def _part(path: tuple[str, ...], pickled: bytes) -> str:
    """The lines of a value below some keys, from that with the last of them on."""
    value = pickle.loads(pickled)
    above = _head(path[:-1])
    if not isinstance(value, dict) or not value:
        return _yaml(path, value).removeprefix(above)
    parts = (_part((*path, key), pickle.dumps(below)) for key, below in value.items())
    return _head(path).removeprefix(above) + "".join(parts)


@lru_cache(maxsize=256)
def _head(path: tuple[str, ...]) -> str:
    """The lines of keys, each below the one before."""
    return _yaml((*path, "x"), 0).removesuffix("  " * len(path) + "x: 0\n")


def _yaml(path: tuple[str, ...], value: Any) -> str:
    for key in reversed(path):
        value = {key: value}
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False))


def _plain(node: Any) -> Any:
    """What OmegaConf.to_container makes, unresolved, in a fifth of the time."""
    if isinstance(node, BaseContainer):
        content = node._content
        if isinstance(content, dict):
            return {_named(key): _plain(value) for key, value in content.items()}
        return [_plain(value) for value in content] if isinstance(content, list) else content
    return _named(node._value())


def _named(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
