"""What of Lightning's Trainer works, what is refused; keys of one's own in a run's records."""

import json

import pytest
from mlflow.tracking import MlflowClient
from running import Command, run


def the_run(folder):
    """The only run directory below a folder, and its MLflow run."""
    (record,) = folder.glob("outputs/*/*/run.json")
    return MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(
        json.loads(record.read_text())["run_id"]
    )


def test_a_key_of_ones_own_is_recorded(tmp_path):
    own = ("+notes='a first try'", "+lab.author=me", "+sed=7")
    run("train.py", "experiment=xor", "trainer.max_epochs=1", "figures=false", *own, cwd=tmp_path)
    params = the_run(tmp_path).data.params
    assert {params["notes"], params["lab.author"], params["sed"]} == {"a first try", "me", "7"}


@pytest.mark.parametrize("typo", ["sed=7", "trainer.max_epoch=3", "notes=1", "optimiser.lr=1"])
def test_a_key_without_a_plus_must_be_there(tmp_path, typo):
    command = Command("train.py", "experiment=xor", typo, cwd=tmp_path).wait()
    assert command.code == 1
    assert f"{typo.partition('=')[0]}: there is no such key" in command.output
    assert "Traceback" not in command.output
