"""What people and other programs see of a run: MLflow's pages in a real browser, a served model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import run

from perceptrail.data.idx import NAMES, read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mnist_dir):
    """A folder with one recorded run on MNIST, and that run's id."""
    folder = tmp_path_factory.mktemp("pages")
    options = ("model.hidden=[64]", "trainer.max_epochs=3", f"data.dir={mnist_dir}")
    run("train.py", *options, cwd=folder)
    (file,) = folder.glob("outputs/*/*/metrics.json")
    return folder, json.loads(file.read_text())["run_id"]


@contextmanager
def serving(folder, *arguments, health):
    """An `mlflow` server on a free port, from when it answers until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", *arguments, "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where uvicorn is
    options = {"cwd": folder, "env": {**os.environ, "PATH": path}, "start_new_session": True}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, **options)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not answers(address + health):
            said = (folder / "server.log").read_text()
            assert server.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def assert_whole(model, *, outside):
    """Whether the code that is stored with a model is what loads it, and hides no other."""
    program = "from perceptrail import prediction as p; print(p.__file__); p._load_pyfunc({!r})"
    program += "; import perceptrail.errors"  # which is not, but installed
    done = subprocess.run(
        [sys.executable, "-c", program.format(str(model / "data" / "model"))],
        env=os.environ | {"PYTHONPATH": str(model / "code")},
        cwd=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(model / "code")


def test_a_served_model_answers_as_predict_does(trained, mnist_dir, tmp_path):
    folder, run_id = trained
    images = read(mnist_dir / NAMES[2])[:10]
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n:02}.png")
    said = run("predict.py", f"run={run_id}", f"image={tmp_path}", cwd=folder).output
    expected = [line.split(": ")[1][0] for line in said.splitlines() if ".png" in line]
    uri = f"sqlite:///{folder}/mlflow.db"
    import mlflow

    mlflow.set_tracking_uri(uri)
    model = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model", dst_path=str(tmp_path))
    assert_whole(Path(model), outside=tmp_path)
    arguments = ("models", "serve", "--model-uri", model, "--env-manager", "local")
    with serving(folder, *arguments, health="/ping") as address:
        pixels = (images.reshape(10, -1).astype(np.float32) / 255).tolist()
        request = urllib.request.Request(
            address + "/invocations",
            json.dumps({"inputs": pixels}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            rows = json.loads(reply.read())["predictions"]
    assert [row["label"] for row in rows] == expected
    assert all(sum(row[str(k)] for k in range(10)) == pytest.approx(1, abs=1e-5) for row in rows)


def until(browser, holds):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, ignored_exceptions=[Exception]).until(holds)


def shows(browser, page, *texts, kept):
    """Wait for a page that has all the texts, and keep a picture of it."""
    browser.get(page)
    until(browser, lambda b: all(t in b.find_element("tag name", "body").text for t in texts))
    browser.save_screenshot(str(kept))


def draws(browser):
    """Wait for a picture."""
    script = "return [...document.images].some(i => i.naturalWidth > 300)"
    until(browser, lambda b: b.execute_script(script))


def ui(folder):
    """MLflow's pages for the store in a folder."""
    store = ("ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1")
    return serving(folder, *store, health="/health")


def test_the_pages_show_the_run_its_curves_and_figures(trained, browser):
    folder, run_id = trained
    with ui(folder) as address:
        page = f"{address}/#/experiments/1/runs/{run_id}"
        texts = ("mnist-mlp", "best/val/acc", "model.hidden", "Finished")
        shows(browser, page, *texts, kept=folder / "run.png")
        texts = ("val/loss", "train/loss", "val/acc")
        shows(browser, page + "/model-metrics", *texts, kept=folder / "curves.png")
        until(browser, lambda b: b.find_elements("css selector", ".js-plotly-plot path.js-line"))
        page += "/artifacts/figures/confusion_matrix.png"
        shows(browser, page, "confusion_matrix.png", kept=folder / "figure.png")
        draws(browser)


def test_the_pages_show_a_search_as_a_tree_and_its_plots(tmp_path, browser):
    short = ("hydra.sweeper.n_trials=4", "trainer.max_epochs=2", "figures=false")
    run("train.py", "-m", "hparams_search=xor", *short, cwd=tmp_path)
    with ui(tmp_path) as address:
        page = f"{address}/#/experiments/1/runs"
        shows(browser, page, "5 matching runs", kept=tmp_path / "closed.png")
        parent = until(browser, lambda b: b.find_element("link text", "xor"))
        parent.find_element("xpath", "ancestor::*[@role='gridcell']//button").click()
        trials = "partial link text", "xor-mlp-"
        until(browser, lambda b: len(b.find_elements(*trials)) == 4)
        browser.save_screenshot(str(tmp_path / "tree.png"))
        page += f"/{parent.get_attribute('href').split('/')[-1]}/artifacts/figures/"
        shows(browser, page + "slice.png", "slice.png", kept=tmp_path / "plot.png")
        draws(browser)
