"""Passwords in addresses."""

import json
import uuid
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from running import Command, run

from perceptrail.passwords import masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:secret@host:1/db", "postgresql://u:***@host:1/db"),
        (
            "a='postgresql+psycopg://u:se/c:r@et@host/db' b",
            "a='postgresql+psycopg://u:***@host/db' b",
        ),
        ("http://:secret@host and https://u:secret@x", "http://:***@host and https://u:***@x"),
        (
            "postgresql://host/db?user=u&password=secret&x=1",
            "postgresql://host/db?user=u&password=***&x=1",
        ),
        ("{uri: 'postgresql://u:secret@h/d', n: 3}", "{uri: 'postgresql://u:***@h/d', n: 3}"),
    ],
)
def test_a_password_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    ["sqlite:////tmp/mlflow.db", "http://host:5000/a b@c", "postgresql://u@host/db", "u:p@h"],
)
def test_all_else_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.slow
def test_a_password_stays_out_of_a_run_and_is_asked_for_when_judging_it(
    tmp_path: Path, postgresql: str
) -> None:
    secret = uuid.uuid4().hex
    url = postgresql.replace("postgres:@", f"postgres:{secret}@")  # not asked for by this server
    url = url.replace("postgresql:", "postgresql+psycopg:")
    store = f"tracking.uri='{url}'"
    multirun = ("-m", "seed=0,1", "experiment=smoke", "figures=false")
    run("train.py", *multirun, store, "hydra.sweep.dir=runs", cwd=tmp_path)
    held = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"multirun.yaml", "overrides.yaml", "run.json"} <= {path.name for path in held}
    assert not [path for path in held if secret.encode() in path.read_bytes()]

    refused = Command("evaluate.py", "run=runs/0", cwd=tmp_path).wait()
    assert refused.code == 1
    assert "give this address with its password" in refused.output.splitlines()[-1]
    run("evaluate.py", "run=runs/0", store, cwd=tmp_path)
    run_id = json.loads((tmp_path / "runs" / "0" / "run.json").read_text())["run_id"]
    assert "test/acc" in MlflowClient(url).get_run(run_id).data.metrics
