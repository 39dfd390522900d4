"""Passwords in the addresses of databases and servers: needed to connect, for nobody to read."""

import re
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from perceptrail.errors import UserError

_PASSWORD = re.compile(r"(?<=://)([^\s:/@]*):\S*@|([?&]password=)[^&\s'\"]+")


def masked(text: str) -> str:
    """`text` with three asterisks for each password in an address."""
    if "@" not in text and "password=" not in text:  # in a fiftieth of the time
        return text
    return _PASSWORD.sub(lambda m: f"{m[2]}***" if m[2] else f"{m[1]}:***@", text)


def unmasked(stored: str, given: str | None, *, key: str) -> str:
    """An address as it was stored, with the password that the same address has in `given`.

    Raises `UserError`, which names the key, where the password is wanting.
    """
    if given is not None and masked(given) == stored:
        stored = given
    if "***" in stored:
        raise UserError(f"{key}={stored}: give this address with its password")
    return stored


class Mask(Callback):
    """Hydra's hook that takes the passwords out of what Hydra has written."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Mask the configuration of a job."""
        if config.hydra.output_subdir is not None:
            _mask(Path(config.hydra.runtime.output_dir, config.hydra.output_subdir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Mask the configuration of several."""
        _mask(Path(config.hydra.sweep.dir))


def _mask(folder: Path) -> None:
    for file in folder.glob("*.yaml"):
        text = file.read_text()
        if masked(text) != text:
            file.write_text(masked(text))
