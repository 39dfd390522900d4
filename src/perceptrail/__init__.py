"""An experiment lab for neural networks, with multi-layer perceptrons as its ground."""

import os
import sys
from typing import TYPE_CHECKING, Any

from perceptrail.lean import Lean

# How many turns one of PyTorch's threads waits for another before it lets go of its core. This many
# cost nothing on a free machine; libgomp's 300,000 make two trainings on the same cores wait for
# each other at every operation. It is read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

sys.meta_path.insert(0, Lean())

if TYPE_CHECKING:
    from perceptrail.interactive import Run, evaluate, load, train

__all__ = ["Run", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:  # PyTorch and all are imported when they are wanted
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from perceptrail import interactive

    return getattr(interactive, name)
