"""What several test modules need."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.singleton import Singleton
from hydra.version import VersionBase

from perceptrail.data.fetch import fetch

# For this process, before it imports PyTorch, and for all that it starts: the networks are tiny,
# and a second thread would cost more than it gives.
os.environ["OMP_NUM_THREADS"] = "1"

# Where the shell has put the tests into the background, Ctrl-C would be ignored by all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fresh_hydra() -> Iterator[None]:
    """Hydra as a process begins with it, which its own tests count on: no version chosen yet."""
    before = Singleton.get_state()
    Singleton._instances.pop(VersionBase, None)
    yield
    Singleton.set_state(before)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with MNIST's four real files: fetched once, kept for later runs. Not to be changed.

    It is the folder that `data=mnist` uses.
    """
    return fetch("mnist", Path(__file__).parents[1] / "data" / "mnist")
