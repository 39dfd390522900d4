"""What people and other programs see of a run: MLflow's pages in a real browser, a served model."""

import json
import os
import shutil
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
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_pages_show_the_run_its_curves_and_figures(trained, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    folder, run_id = trained
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    for flag in [*flags.split(), f"--user-data-dir={tmp_path}", "--window-size=1400,1000"]:
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    store = ("ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1")
    with serving(folder, *store, health="/health") as address:
        browser = webdriver.Chrome(options, service)
        try:
            page = f"{address}/#/experiments/1/runs/{run_id}"

            def shows(where, *texts):
                browser.get(page + where)
                body = (By.TAG_NAME, "body")
                WebDriverWait(browser, 60, ignored_exceptions=[Exception]).until(
                    lambda b: all(text in b.find_element(*body).text for text in texts)
                )
                browser.save_screenshot(str(folder / f"page{where.replace('/', '_')}.png"))

            shows("", "mnist-mlp", "best/val/acc", "model.hidden", "FINISHED".title())
            shows("/model-metrics", "val/loss", "train/loss", "val/acc")
            WebDriverWait(browser, 60).until(
                lambda b: b.find_elements(By.CSS_SELECTOR, ".js-plotly-plot path.js-line")
            )
            shows("/artifacts/figures/confusion_matrix.png", "confusion_matrix.png")
            WebDriverWait(browser, 60).until(
                lambda b: b.execute_script(
                    "return [...document.images].some(i => i.naturalWidth > 300)"
                )
            )
        finally:
            browser.quit()
