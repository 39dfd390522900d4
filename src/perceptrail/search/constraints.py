"""Constraints: what a point must meet to be tried at all, and what a run must reach to count.

A condition on the configuration is a Python expression in which the configuration's keys are
names, such as `sum(model.hidden) <= 512`, or the full name of a function that takes the
configuration and tells whether it may be tried.
"""

import ast
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from perceptrail.errors import UserError

SIGNS = {ast.LtE: 1, ast.Lt: 1, ast.GtE: -1, ast.Gt: -1}
FUNCTIONS = {f.__name__: f for f in (abs, all, any, len, max, min, round, sum)}


def condition(text: str) -> Callable[[DictConfig], bool]:
    """What tells whether a configuration meets a constraint. Raises UserError if nothing can."""
    if _is_name(text):
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


def violation(text: str) -> Callable[[Mapping[str, float]], float]:
    """By how much what a run has reported breaks `a <= b` or `a >= b`: above 0 if it does.

    In `text` a name such as val/acc is written val_acc. Raises UserError if it is no such
    comparison, and its result raises one for a run that has not reported what it names.
    """
    key = "hydra.sweeper.outcome_constraints"
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{key}: '{text}' is no expression") from error
    if not (isinstance(tree, ast.Compare) and len(tree.ops) == 1):
        raise UserError(f"{key}: '{text}' is no comparison such as parameters <= 100_000")
    order = SIGNS.get(type(tree.ops[0]))
    if order is None:
        raise UserError(f"{key}: '{text}' compares otherwise than by <= or >=")
    sides = (tree.left, tree.comparators[0])
    left, right = (compile(ast.Expression(side), "constraint", "eval") for side in sides)

    def excess(reported: Mapping[str, float]) -> float:
        names = {re.sub(r"\W", "_", name): value for name, value in reported.items()}
        known: dict[str, Any] = {"__builtins__": {}, **FUNCTIONS}
        try:
            return float(order * (eval(left, known, names) - eval(right, known, names)))
        except (NameError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"{key}: '{text}' fails: {error}; a trial reports {', '.join(names)}"
            ) from error

    return excess


def _is_name(text: str) -> bool:
    """Whether a constraint is the full name of a function; a module's may have hyphens."""
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)+", text):
        return False
    return "-" not in text or find_spec(text.partition(".")[0]) is not None


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function, or method of a class, of a full name.

    Raises UserError, naming the key, if there is none.
    """
    module, *attributes = name.rpartition(".")[::2]
    while True:
        try:
            found: Any = import_module(module)
            break
        except ImportError as error:
            if not module.startswith(getattr(error, "name", None) or "?") or "." not in module:
                raise UserError(f"{key}={name}: {error}") from error
            module, outer = module.rpartition(".")[::2]
            attributes.insert(0, outer)
    for attribute in attributes:
        found = getattr(found, attribute, None)
    if not callable(found):
        raise UserError(f"{key}={name}: there is no such function in {module}")
    return found  # type: ignore[no-any-return]
