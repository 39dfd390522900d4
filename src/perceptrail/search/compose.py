"""The configuration of one trial, composed in a fraction of the time that Hydra takes.

Composing walks the defaults lists and reads every file anew. What is read depends only on the
config groups that are chosen; so each choice of groups is composed once, and the other overrides
are applied to a copy, by Hydra's own function.
"""

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


class Composer:
    """Does what `load_sweep_config` of a config loader does for one master configuration."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job with these overrides."""
        parsed = self._parser.parse_overrides(list(overrides))
        chosen = tuple(o.input_line or "" for o in parsed if self._is_group(o))
        if chosen not in self._composed:
            self._composed[chosen] = self._loader.load_sweep_config(self._master, list(chosen))
        config = copy.deepcopy(self._composed[chosen])
        values = [o for o in parsed if not self._is_group(o)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = list(overrides)
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed,
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
