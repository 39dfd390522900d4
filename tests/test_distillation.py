"""Teachers by name, on the command line."""

import json
import shutil

import pytest
from running import Command, run

SPIRALS = ("data=spirals", "data.points=300", "model.hidden=[16]", "trainer.max_epochs=3")
LITTLE = ("tracking=none", "figures=false", "trainer=cpu")


def train(*overrides, cwd, folder):
    """Train, and return what the best epoch came to on the validation data."""
    run("train.py", *SPIRALS, *LITTLE, f"hydra.run.dir={folder}", *overrides, cwd=cwd)
    return json.loads((cwd / folder / "metrics.json").read_text())["best/val/loss"]


def assert_refused(*arguments, cwd, said):
    """One line, and no traceback."""
    refused = Command("train.py", *arguments, cwd=cwd).wait()
    assert refused.code == 1
    assert said in refused.output
    assert "Traceback" not in refused.output


def test_a_teacher_counts_as_much_as_its_weight_says(tmp_path):
    alone = train(cwd=tmp_path, folder="teacher")
    taught = ("distillation.teacher=teacher", "distillation.weight=0")
    assert train(*taught, cwd=tmp_path, folder="zero") == pytest.approx(alone, rel=1e-5)
    half = train(*taught[:1], cwd=tmp_path, folder="half")
    whole = train(*taught[:1], "distillation.weight=1", cwd=tmp_path, folder="one")
    assert len({alone, half, whole}) == 3
    shutil.rmtree(tmp_path / "teacher")
    said = "distillation.teacher=teacher: must be the directory or the MLflow id"
    assert_refused("resume=half", "trainer.max_epochs=4", cwd=tmp_path, said=said)


def test_what_cannot_teach(tmp_path):
    train("data.arms=3", cwd=tmp_path, folder="three")
    for name, said in {
        "latest": "must be the directory or the MLflow id of a run here that has finished",
        "three": "must know inputs of shape (2,) and the classes 0, 1, not (2,) and 0, 1, 2",
    }.items():
        given = f"distillation.teacher={name}"
        assert_refused(*SPIRALS, *LITTLE, given, cwd=tmp_path, said=f"{given}: {said}")


def test_an_unknown_key_is_refused_by_its_own_group(tmp_path):
    given = (*SPIRALS, *LITTLE, "+distillation.x=1")
    assert_refused(*given, cwd=tmp_path, said="distillation: teaching() got an unexpected keyword")
