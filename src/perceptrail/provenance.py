"""Where a run comes from: the command, the commit and what was not committed, the configuration."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from getpass import getuser
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from perceptrail.invocation import folder


@cache
def origin(command: str) -> tuple[dict[str, str], dict[str, str]]:
    """Where the runs of a command come from: tags, and texts to be stored as files."""
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name,
        "mlflow.user": getuser(),
        "command": command,
    }
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
            ["git", "-C", str(folder()), *arguments],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
        )
    except FileNotFoundError:
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def flat(cfg: DictConfig) -> dict[str, str]:
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
