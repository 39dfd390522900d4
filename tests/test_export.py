"""Exported files, each read by a runtime of its own and compared with the stored run."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from running import Command, run

from perceptrail.export import FACTS, FORMATS, TOLERANCE
from perceptrail.prediction import Predictor

TRAIN = ("tracking=none", "figures=false", "trainer.max_epochs=2", "hydra.run.dir=run")
JOBS = {
    "classes": ("data=digits", "model.norm=batch", "model.dropout=0.2"),
    "two classes": ("data=moons",),
    "cnn": ("data=digits", "model=cnn"),
    "numbers": ("data=tabular", "data.table=diabetes", "task=regression"),
    "labels": ("data=arrays", "data.path=labels.npz", "data.kind=numbers", "task=multilabel"),
}


@pytest.fixture(scope="module", params=JOBS)
def stored(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    np.savez(folder / "labels.npz", x=x, y=(x[:, :2] > 0).astype(np.float32))
    run("train.py", *TRAIN, *JOBS[request.param], cwd=folder)
    return folder


def read(path, form, x):
    """What the file says, and its facts."""
    extra = {FACTS: ""}
    if form == "onnx":
        model = onnx.load(path)
        (answers,) = onnxruntime.InferenceSession(path).run(None, {"input": x})
        return answers, {p.key: json.loads(p.value) for p in model.metadata_props}
    if form == "torchscript":
        module = torch.jit.load(path, _extra_files=extra)
    else:
        module = torch.export.load(path, extra_files=extra).module()
    with torch.no_grad():
        answers = module(torch.from_numpy(x)).numpy()
    return answers, {k: json.loads(v) for k, v in json.loads(extra[FACTS]).items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", FORMATS)
def test_the_file_answers_as_the_stored_run(stored, form):
    said = run(
        "export.py", f"format={form}", "run=run", "tracking=none", f"output=a/{form}.x", cwd=stored
    )
    path = stored / "a" / f"{form}.x"
    (line,) = said.output.splitlines()
    assert "answers as the network does" in line
    assert list(path.parent.glob(".*")) == []
    predictor = Predictor(stored / "run/model")
    shape = json.loads((stored / "run/model/model.json").read_text())["shape"]
    for n in (1, 7):
        x = np.random.default_rng(n).normal(size=(n, int(np.prod(shape)))).astype(np.float32)
        answers, facts = read(path, form, x)
        told = predictor.predict(x).select_dtypes("number").to_numpy()
        assert answers.shape == told.shape
        unit = facts["task"].get("std", 1)
        assert np.abs((answers - told) / unit).max() <= TOLERANCE
    assert facts["shape"] == shape
    assert {"classes", "task"} <= facts.keys()


@pytest.mark.slow
def test_it_is_logged_to_the_run(tmp_path):
    import mlflow

    run("train.py", *TRAIN, "data=xor", "tracking=mlflow", cwd=tmp_path)
    run("export.py", "run=run", "format=torch_export", cwd=tmp_path)
    assert (tmp_path / "run/export/network.pt2").is_file()
    run_id = json.loads((tmp_path / "run/run.json").read_text())["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [f.path for f in client.list_artifacts(run_id, "export")] == ["export/network.pt2"]


@pytest.mark.slow
def test_what_cannot_be_exported_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    own = ("task=own", "task._target_=users_modules.Autoencoder")
    run("train.py", *TRAIN, "data=digits", *own, cwd=tmp_path)
    for arguments, said in (
        (["format=onxx"], "format=onxx: must be one of onnx, torchscript, torch_export (did you"),
        (["run=nothing"], "run=nothing: there is no such run"),
        (["run=run"], "does not return [batch, outputs]"),
    ):
        failed = Command("export.py", *arguments, "tracking=none", cwd=tmp_path).wait()
        assert failed.code != 0
        assert said in failed.output
        assert "Traceback" not in failed.output
    assert not (tmp_path / "run/export").exists()
