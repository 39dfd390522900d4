"""A run written whole, against the same run by MLflow's own client: every table, every file."""

import os
import sqlite3
import uuid
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import IntegrityError

from perceptrail.model import MLP
from perceptrail.tracking import Store

TABLES = {
    "runs": ["name", "status", "experiment_id", "user_id", "source_type", "lifecycle_stage"],
    "tags": ["key", "value"],
    "params": ["key", "value"],
    "metrics": ["key", "value", "step", "is_nan"],
    "latest_metrics": ["key", "value", "step", "is_nan"],
    "datasets": ["name", "digest", "dataset_source_type", "dataset_source", "dataset_profile"],
    "inputs": ["source_type", "destination_type", "step"],
    "input_tags": ["name", "value"],
    "logged_models": ["name", "status", "model_type", "lifecycle_stage", "experiment_id"],
}


@pytest.fixture
def calls(tmp_path):
    """What a run tells of itself."""
    network = MLP(4, 3, hidden=[5], mean=0.0, std=1.0)
    facts = {"classes": ("a", "b", "c"), "shape": (4,), "task": {"name": "classification"}}
    network.save(tmp_path / "model", **facts)
    (tmp_path / "history.csv").write_text("step\n1\n")
    (tmp_path / "config.yaml").write_text("uri: postgresql://me:secret@host/db\n")
    rows = [{"step": s, "epoch": s, "val/loss": 1 / s, "odd": float("nan")} for s in (1, 2, 3)]
    return [
        ("log_params", ({"seed": "0", "uri": "postgresql://me:secret@host/db"},), {}),
        ("log_texts", ({"environment/command.txt": "python train.py\n"},), {}),
        ("log_files", ([str(tmp_path / "config.yaml")],), {"folder": "config"}),
        ("log_environment", (), {}),
        (
            "log_dataset",
            (),
            {"name": "xor", "digest": "d" * 40, "source": "here", "facts": {"train": 4}},
        ),
        *(("log_row", (row,), {}) for row in rows),
        ("log_row", (rows[0],), {}),  # come twice
        ("log_model", (str(tmp_path / "model"),), {"code": []}),
        ("log_files", ([str(tmp_path / "history.csv")],), {}),
        ("log_metrics", ({"best/val/loss": 0.5},), {"step": 3}),
        ("set_tags", ({"mlflow.note.content": "first"},), {}),
        ("set_tags", ({"mlflow.note.content": "last"},), {}),
    ]


def opening(folder: Path, key: str) -> dict:
    folder.mkdir(exist_ok=True)
    tags = {"mlflow.user": "somebody", "command": "python train.py"}
    return {"key": key, "name": "xor", "run_dir": str(folder), "owner": os.getpid(), "tags": tags}


def content(database: Path) -> dict[str, Counter]:
    with sqlite3.connect(database) as connection:
        return {
            table: Counter(connection.execute(f"SELECT {', '.join(columns)} FROM {table}"))
            for table, columns in TABLES.items()
        }


def files(folder: Path) -> list[tuple[str, ...]]:
    """Their names below that of the run or model, which differ."""
    places = [path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()]
    return sorted(p[2:] if p[0] == "models" else p[1:] for p in places)


def test_it_is_the_run_that_mlflows_client_writes(tmp_path, calls):
    homes = [tmp_path / "client", tmp_path / "whole"]
    runs = []
    for home in homes:
        home.mkdir()
        store = Store(f"sqlite:///{home}/mlflow.db", "test")
        given = opening(tmp_path / "run", "the-key")
        for attempt in range(2):  # of which the second finds the data set there
            own = given | {"key": f"key-{attempt}"}
            if home.name == "client":
                run_id = store.open_run(**own)
                store.log_all(run_id, calls)
                store.close_run(run_id, status="FINISHED")
            else:
                run_id = uuid.uuid4().hex
                store.log_run(run_id, calls, **own, parent=None, status="FINISHED")
        runs.append(run_id)
        store.abandon()
    one, other = (content(home / "mlflow.db") for home in homes)
    assert one == other
    assert files(homes[0] / "mlartifacts") == files(homes[1] / "mlartifacts")
    texts = [
        next(home.glob(f"mlartifacts/{run}/**/config.yaml")).read_text()
        for home, run in zip(homes, runs, strict=True)
    ]
    assert texts[0] == texts[1]
    assert "secret" not in texts[0]
    assert "secret" not in str(other)

    mlflow.set_tracking_uri(f"sqlite:///{homes[1]}/mlflow.db")
    client = MlflowClient()
    run = client.get_run(runs[1])
    assert run.info.end_time >= run.info.start_time
    assert [m.value for m in client.get_metric_history(runs[1], "val/loss")] == [1, 1 / 2, 1 / 3]
    model = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    assert model.predict(np.zeros((2, 4), np.float32)).shape == (2, 4)


def test_a_run_that_fails_to_be_told_is_not_there(tmp_path, calls):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "test")
    calls[-1] = ("log_files", ([str(tmp_path / "missing.csv")],), {})
    given = opening(tmp_path / "run", "k")
    with pytest.raises(FileNotFoundError):
        store.log_run(uuid.uuid4().hex, calls, **given, parent=None, status="FINISHED")
    assert not any(content(tmp_path / "mlflow.db").values())
    store.log_run("a" * 32, calls[:-1], **given, parent=None, status="FAILED", note="why")
    store.abandon()
    found = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run("a" * 32)
    assert (found.info.status, found.data.tags["mlflow.note.content"]) == ("FAILED", "why")


def test_a_run_that_cannot_be_written_takes_no_other_along(tmp_path, calls):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "test")
    given = opening(tmp_path / "run", "k") | {"parent": None, "status": "FINISHED"}
    for run_id in ("a" * 32, "b" * 32, "b" * 32):
        store.log_run(run_id, calls, **given)
    with pytest.raises(IntegrityError):
        store.flush()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert len(client.search_runs([store._experiment])) == 2
    for run_id in ("a" * 32, "b" * 32):
        assert len(client.get_metric_history(run_id, "val/loss")) == 3
    store.abandon()


def test_files_that_cannot_be_stored_fail_their_run_alone(tmp_path, calls, monkeypatch):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db", "test")
    given = opening(tmp_path / "run", "k") | {"parent": None, "status": "FINISHED"}
    monkeypatch.setattr("perceptrail.drafts._local", lambda repository: None)  # as if elsewhere
    store.log_run("a" * 32, calls, **given)
    with monkeypatch.context() as patch:
        usual = LocalArtifactRepository.log_artifacts

        def fail(self, *args):
            if "models" not in self.artifact_dir:
                raise ConnectionError("the store is away")
            usual(self, *args)

        patch.setattr(LocalArtifactRepository, "log_artifacts", fail)
        with pytest.raises(ConnectionError):
            store.log_run("b" * 32, calls, **given)
    store.abandon()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([store._experiment])
    assert run.info.run_id == "a" * 32
    stored = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert {"history.csv", "config.yaml", "model.safetensors"} <= stored
