"""What several test modules need."""

from pathlib import Path

import pytest

from perceptrail.data.fetch import fetch


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with MNIST's four real files: fetched once, kept for later runs. Not to be changed.

    It is the folder that `data=mnist` uses.
    """
    return fetch("mnist", Path(__file__).parents[1] / "data" / "mnist")
