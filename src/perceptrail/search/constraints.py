"""Constraints: conditions on a trial's configuration that a point must meet to be tried at all.

Each is either a Python expression in which the configuration's keys are names, such as
`sum(model.hidden) <= 512`, or the full name of a function that takes the configuration and tells
whether it may be tried.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from types import CodeType
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from perceptrail.errors import UserError

FUNCTIONS = {f.__name__: f for f in (abs, all, any, len, max, min, round, sum)}


class Constraints:
    """All constraints of a search."""

    def __init__(self, constraints: Sequence[str]) -> None:
        self._all = [(text, _read(text)) for text in constraints]

    def __bool__(self) -> bool:
        return bool(self._all)

    def hold(self, config: DictConfig) -> bool:
        """Whether the configuration meets them all."""
        return all(_evaluate(text, test, config) for text, test in self._all)


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function of a full name. Raises UserError, naming the key, if there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        function = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"{key}={name}: {error}") from error
    if not callable(function):
        raise UserError(f"{key}={name}: there is no such function in {module}")
    return function  # type: ignore[no-any-return]


def _read(text: str) -> CodeType | Callable[..., Any]:
    if re.fullmatch(r"\w+(\.\w+)+", text):
        return imported("hydra.sweeper.constraints", text)
    try:
        return compile(text, "constraint", "eval")
    except SyntaxError as error:
        raise UserError(f"hydra.sweeper.constraints: '{text}' is no expression") from error


def _evaluate(text: str, test: CodeType | Callable[..., Any], config: DictConfig) -> bool:
    if not isinstance(test, CodeType):
        return bool(test(config))
    try:
        return bool(eval(test, {"__builtins__": {}, **FUNCTIONS}, dict(config)))
    except (NameError, TypeError, ValueError, ArithmeticError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hydra.sweeper.constraints: '{text}' fails: {reason}") from error
