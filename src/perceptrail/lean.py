"""Start-up without what Lightning takes along and a training never asks for: a third of the time.

PyTorch's compiler, its counter of operations (with Triton) and SciPy's signal processing are
imported once something is asked of them that cannot be answered without. torchvision, which
torchmetrics imports wherever it is, for metrics of generated images, is there for the two once it
has been imported by whoever wants it.
"""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

COMPILER, COUNTER = "torch._dynamo", "torch.utils.flop_counter"


class _Compiled(type):
    def __instancecheck__(cls, value: object) -> bool:
        home = sys.modules.get(f"{COMPILER}.eval_frame")
        return isinstance(value, getattr(home, "OptimizedModule", ()))


class _OptimizedModule(metaclass=_Compiled):
    """The class of compiled modules, of which there are none before the compiler is there."""


_marks: list[Callable[[], None]] = []  # to be made when the compiler is there


def _disable(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """As the compiler marks what it may not look into; it does so itself once it is there."""
    if not isinstance(function, FunctionType):
        return _imported(COMPILER).disable(function, *args, **kwargs)
    marked: Callable[..., Any] = function

    def mark() -> None:
        nonlocal marked
        marked = _imported(COMPILER).disable(function, *args, **kwargs)

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        return marked(*given, **named)

    _marks.append(mark)
    return call


# What is known of modules that have not been imported: what Lightning and optimizers ask where
# nothing is compiled, and no summary made; a name that torchmetrics would have for another package.
KNOWN: dict[str, dict[str, Any]] = {
    COMPILER: {
        "OptimizedModule": _OptimizedModule,
        "disable": _disable,
        "graph_break": lambda: None,
    },
    COUNTER: {"FlopCounterMode": lambda *a, **k: _imported(COUNTER).FlopCounterMode(*a, **k)},
    "scipy.signal": {"hamming": None},
}


class _Later(ModuleType):
    """A module that is imported when what is not known of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which is asked of every module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        known = KNOWN.get(self.__name__, {})
        return known[name] if name in known else getattr(_imported(self.__name__), name)


def _imported(name: str) -> ModuleType:
    is_first = KNOWN.pop(name, None) is not None
    if is_first:
        del sys.modules[name]
    module = import_module(name)
    while is_first and name == COMPILER and _marks:
        _marks.pop()()
    return module


class _Loader(Loader):
    """Has a module ready, and leaves it as it is."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def spec(self) -> ModuleSpec:
        """By which an import that is under way takes the module that has come meanwhile."""
        found = ModuleSpec(self._module.__name__, self)
        vars(self._module)["__spec__"] = found  # by the module's own, Python would make another
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        if self._spec is not None:
            vars(module)["__spec__"] = self._spec


class Lean(MetaPathFinder):
    """Watches for the imports of those modules, of what is below them, and of torchmetrics."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module to be imported later, or nothing; the finders that follow know the others."""
        if fullname == "torchmetrics":
            _hide_torchvision()
        elif fullname in KNOWN:
            return ModuleSpec(fullname, _Loader(_Later(fullname)), is_package=True)
        elif (package := fullname.rpartition(".")[0]) in KNOWN:
            _imported(package)
            return _Loader(import_module(fullname)).spec()
        return None


def _hide_torchvision() -> None:
    from lightning_utilities.core.imports import RequirementCache

    check = RequirementCache._check_available

    def check_imported(self: Any) -> None:
        if self.requirement == "torchvision":
            self.available = "torchvision" in sys.modules
            self.message = "torchvision has not been imported yet"
        else:
            check(self)

    RequirementCache._check_available = check_imported  # type: ignore[method-assign]
