"""What a start does without, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import sys
import perceptrail.training
print("torchvision" in sys.modules)
from torchmetrics.utilities.imports import _TORCHVISION_AVAILABLE as there
print(bool(there))
import torchvision
print(bool(there))
"""


def test_torchvision_is_there_for_torchmetrics_once_it_is_imported_and_not_before():
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False", "True"]
