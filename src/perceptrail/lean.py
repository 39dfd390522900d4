"""Start-up without torchvision: torchmetrics, which Lightning imports, takes it wherever it is.

That costs a second, for metrics of generated images. With this, torchvision is there for the two
once it has been imported by whoever wants it, and not before.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


class Lean(MetaPathFinder):
    """Watches for the import of torchmetrics, and changes what it sees of torchvision."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Find nothing; the finders that follow do."""
        if fullname == "torchmetrics":
            _hide_torchvision()


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
