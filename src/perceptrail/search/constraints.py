"""Constraints: conditions on a trial's configuration that a point must meet to be tried at all.

Each is either a Python expression in which the configuration's keys are names, such as
`sum(model.hidden) <= 512`, or the full name of a function that takes the configuration and tells
whether it may be tried.
"""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from perceptrail.errors import UserError

FUNCTIONS = {f.__name__: f for f in (abs, all, any, len, max, min, round, sum)}


def condition(text: str) -> Callable[[DictConfig], bool]:
    """What tells whether a configuration meets a constraint. Raises UserError if nothing can."""
    if re.fullmatch(r"\w+(\.\w+)+", text):
        return imported("hydra.sweeper.constraints", text)
    try:
        code = compile(text, "constraint", "eval")
    except SyntaxError as error:
        raise UserError(f"hydra.sweeper.constraints: '{text}' is no expression") from error

    def holds(config: DictConfig) -> bool:
        try:
            return bool(eval(code, {"__builtins__": {}, **FUNCTIONS}, dict(config)))
        except (NameError, TypeError, ValueError, ArithmeticError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"hydra.sweeper.constraints: '{text}' fails: {reason}") from error

    return holds


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
