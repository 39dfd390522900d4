"""Runs from Python: what the commands leave, returned; a notebook as its reader runs it."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from pytorch_lightning import Callback
from running import run

import perceptrail
from perceptrail import config as _resolvers  # noqa: F401  (before a fixture notes what there are)
from perceptrail.data.dataset import as_float
from perceptrail.data.sets import digits
from perceptrail.errors import UserError

ROOT = Path(__file__).parent.parent
QUICK = {"data": "digits", "tracking": "none", "figures": False, "trainer.max_epochs": 2}


@pytest.fixture
def here(tmp_path, monkeypatch, fresh_hydra):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stable(metrics):
    return {k: v for k, v in metrics.items() if not k.startswith(("time/", "run_id", "train/samp"))}


def test_the_numbers_are_those_of_the_command(here):
    run("train.py", "model.hidden=[8,4]", "seed=3", *typed(QUICK), "hydra.run.dir=run", cwd=here)
    other = perceptrail.train("model.hidden=[8,4]", seed=3, **QUICK)
    command = perceptrail.load("run", "tracking=none")
    assert stable(other.metrics) == stable(command.metrics)
    assert other.config == command.config
    pd.testing.assert_frame_equal(
        *(r.history.drop(columns="train/samples_per_second") for r in (other, command))
    )
    weights = [r.network.state_dict() for r in (other, command)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert other.metrics["time/total_s"] < 60


def typed(values):
    return [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in values.items()]


def test_a_run_is_evaluated_asked_and_shown(here):
    made = perceptrail.train(**QUICK | {"figures": True, "trainer.max_epochs": 8})
    found = made.evaluate("tracking=none")
    x, y = digits().test()
    told = made.predict(as_float(x).reshape(-1, 8, 8))
    right = float((told["label"].astype(int).to_numpy() == y).mean())
    assert found["test/acc"] == made.metrics["test/acc"] == pytest.approx(right)
    assert right > 0.8
    assert "test/acc" in repr(made)
    shown = made._repr_html_()
    assert "data:image/png;base64," in shown
    assert f"{found['test/acc']:.4g}" in shown
    assert {"learning_curves", "confusion_matrix"} <= {path.stem for path in made.figures}
    assert perceptrail.load("latest", "tracking=none").run_dir.samefile(made.run_dir)


def test_the_callers_log_goes_on(here):
    handler = logging.FileHandler("own.log", mode="w")
    log = logging.getLogger("own")
    log.addHandler(handler)
    try:
        for k in range(2):
            log.warning("before %d", k)
            perceptrail.train(**QUICK)
        log.warning("after")
        assert any(known() is handler for known in logging._handlerList)  # flushed at exit
    finally:
        log.removeHandler(handler)
        handler.close()
    assert Path("own.log").read_text().split("\n") == ["before 0", "before 1", "after", ""]


def test_two_trainings_know_nothing_of_each_other(here):
    first, second = (perceptrail.train(**QUICK, model=m) for m in ("shallow", "deep"))
    assert first.run_dir != second.run_dir
    assert len(first.config.model.hidden) == 1 < len(second.config.model.hidden)
    again = perceptrail.train(**QUICK, model="shallow")
    assert stable(again.metrics) == stable(first.metrics)
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr: there is no such key or group"),
        (["model=dep"], "model=dep: must be one of"),
        (["optimizer.lr=-1"], "optimizer.lr=-1: must be a number above 0"),
        (["resume=nothing"], "resume=nothing: there is no such run"),
    ],
)
def test_a_bad_override_is_a_user_error_and_leaves_nothing(here, overrides, said):
    with pytest.raises(UserError) as caught:
        perceptrail.train(*overrides)
    assert str(caught.value).startswith(said)
    assert list(here.iterdir()) == []
    with pytest.raises(UserError, match="run=nothing: there is no such run"):
        perceptrail.load("nothing", "tracking=none")


class Interrupt(Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not Path("pressed").exists():
            Path("pressed").touch()
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_training_goes_on(here):
    tracked = QUICK | {"tracking": "mlflow"}
    whole = perceptrail.train(**tracked)
    with pytest.raises(KeyboardInterrupt):
        perceptrail.train("+callbacks.own._target_=test_interactive.Interrupt", **tracked)
    client = mlflow.MlflowClient(f"sqlite:///{here / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    stored, first = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "KILLED"
    command = f"perceptrail train {' '.join(typed(tracked))}"
    assert first.data.tags["command"] == command
    own = "perceptrail train +callbacks.own._target_=test_interactive.Interrupt"
    assert stored.data.tags["command"] == command.replace("perceptrail train", own)
    resumed = perceptrail.train("resume=latest")
    assert resumed.run_id == stored.info.run_id
    assert client.get_run(resumed.run_id).info.status == "FINISHED"
    assert resumed.metrics["val/loss"] == whole.metrics["val/loss"]


@pytest.mark.slow
def test_a_fresh_process_loads_the_best_of_the_store(here):
    run("train.py", *typed(QUICK | {"tracking": "mlflow", "data": "xor"}), cwd=here)
    code = "from perceptrail import load; print('run_id', load('best').run_id)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    made = perceptrail.load("latest", "tracking=none")
    assert f"run_id {made.run_id}" in told.stdout


def test_the_package_alone_is_light():
    code = "import perceptrail, sys; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        _ = perceptrail.nothing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tutorial_runs(tmp_path):
    notebook = nbformat.read(ROOT / "examples" / "tutorial.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert any("data:image/png" in "".join(page) for page in pages)
    bars = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    assert any("epoch 15/15: 100%" in bar for bar in bars)
    found = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/*/*/metrics.json")]
    assert max(m.get("test/acc", 0) for m in found) > 0.9
    assert np.isfinite([m["val/loss"] for m in found]).all()
