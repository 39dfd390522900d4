"""What a task measures and minimises, against scikit-learn and PyTorch; each seam for each."""

import csv
import json
import signal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from launching import launch
from mlflow.tracking import MlflowClient
from running import Command, run
from safetensors.torch import load_file
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch.nn import functional as F

from perceptrail import tasks
from perceptrail.prediction import Predictor
from perceptrail.tasks import Regression

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


def numbers(n, several, *, members=()):
    """Outputs, and targets far from 0 and of other sizes."""
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(size=(*members, n, several)).astype(np.float32))
    y = 1000 + rng.normal(size=(*members, n, several)) * np.array([5.0, 300.0, 1.0])[:several]
    return outputs, torch.from_numpy(y.astype(np.float32))


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_measured_of_numbers_is_as_scikit_learn_has_it(several, loss):
    outputs, y = numbers(200, several)
    task = Regression.of(list("abc")[:several], y, loss=loss)
    column = y[:, 0] if several == 1 else y
    halves = [task.sums(outputs[k], column[k]) for k in (slice(120), slice(120, None))]
    found = {name: float(value) for name, value in task.metrics(sum(halves), 200).items()}
    told, true = task.predicted(outputs).numpy(), y.double().numpy()
    assert told.mean(0) == pytest.approx(true.mean(0), rel=0.5)
    scaled = (true - true.mean(0)) / true.std(0)
    assert found == pytest.approx(
        {
            "loss": float(LOSSES[loss](outputs.double(), torch.from_numpy(scaled))),
            "r2": r2_score(true, told),
            "mae": mean_absolute_error(true, told),
            "rmse": root_mean_squared_error(true, told),
        },
        rel=1e-5,
    )


def test_numbers_that_are_all_the_same_have_an_r2_as_scikit_learn_has_it():
    y = torch.full((9,), 3.0)
    task = Regression.of(["a"], y)
    for outputs in (torch.zeros(9, 1), torch.ones(9, 1)):
        found = task.metrics(task.sums(outputs, y), 9)["r2"]
        assert float(found) == r2_score(y.numpy(), task.predicted(outputs)[:, 0].numpy())


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_slope_of_a_loss_is_what_autograd_finds(loss, several):
    outputs, y = numbers(50, several)
    task = Regression.of(list("abc")[:several], y, loss=loss)
    given = outputs.clone().requires_grad_()
    value = task.loss(given, y)
    value.backward()
    assert float(value.detach()) == pytest.approx(
        float(LOSSES[loss](outputs, (y - task.mean) / task.std)), rel=1e-5
    )
    found, slope = task.loss_and_slope(outputs, y, share=0.5)
    torch.testing.assert_close((found, slope), (value.detach() / 2, given.grad / 2))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stack_has_each_members_loss_slope_and_measures(loss):
    outputs, y = numbers(50, 2, members=(3,))
    y = y * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    each = [Regression.of(["a", "b"], own, loss=loss) for own in y]
    stack = Regression.stacked(each)
    stack.keep([0, 2])
    kept = [0, 2]
    losses, slopes = stack.losses_and_slopes(outputs[kept], y[kept])
    found = stack.metrics(stack.sums(outputs[kept], y[kept]), 50)
    for place, k in enumerate(kept):
        loss_of, slope = each[k].loss_and_slope(outputs[k], y[k])
        torch.testing.assert_close((losses[place], slopes[place]), (loss_of, slope))
        own = each[k].metrics(each[k].sums(outputs[k], y[k]), 50)
        torch.testing.assert_close({k: v[place] for k, v in found.items()}, own)


def test_a_task_comes_back_from_its_facts():
    outputs, y = numbers(50, 2)
    task = Regression.of(["a", "b"], y, loss="huber")
    facts = json.loads(json.dumps({"task": task.facts(), "classes": [], "targets": ["a", "b"]}))
    again = tasks.read(facts)
    assert again.names == ("a", "b")
    assert torch.equal(again.predicted(outputs), task.predicted(outputs))
    assert torch.equal(again.sums(outputs, y), task.sums(outputs, y))


# Each seam, for each task.

TABLE = (
    "data=table",
    "data.path=houses.csv",
    "data.test=0.25",
    "trainer=cpu",
    "trainer.max_epochs=4",
)
SMALL = ("model.hidden=[8]", "figures=false")
CHOSEN = {
    "one number": ("task=regression", "data.target=price", "data.features=[size,rooms,town]"),
    "numbers": (
        "task=regression",
        "data.target=[price,rent]",
        "task.loss=huber",
        "model.dropout=0",
    ),
}
every_task = pytest.mark.parametrize("chosen", list(CHOSEN))


def houses(folder: Path) -> Path:
    """A table of houses, in a folder."""
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame({"size": rng.normal(100, 30, n).round(1), "rooms": rng.integers(1, 8, n)})
    frame["town"] = rng.choice(["A", "B"], n)
    frame["price"] = 2000 * frame["size"] + 20_000 * (frame["town"] == "B") + rng.normal(0, 99, n)
    frame["rent"] = (frame["price"] / 300 + rng.normal(0, 9, n)).round(1)
    frame["cheap"] = (frame["price"] < 190_000).astype(int)
    frame["large"] = (frame["size"] > 100).astype(int)
    frame.to_csv(folder / "houses.csv", index=False)
    return folder / "houses.csv"


def history(folder):
    with (folder / "history.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


@pytest.fixture(scope="module", params=CHOSEN)
def trained(request, tmp_path_factory):
    """A run of a task, killed in its third epoch and gone on with, and the task's overrides."""
    folder = tmp_path_factory.mktemp("trained")
    houses(folder)
    options = [*TABLE, *CHOSEN[request.param], "model.hidden=[8]", "hydra.run.dir=outputs/x/run"]
    kill = ("+callbacks.kill._target_=tests.killing.Kill", "+callbacks.kill.epoch=2")
    killed = Command("train.py", *options, *kill, cwd=folder).wait()
    assert killed.code == -signal.SIGKILL, killed.output
    run("train.py", "resume=latest", cwd=folder)
    return folder, options


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_interrupted(trained, tmp_path):
    folder, options = trained
    houses(tmp_path)
    run("train.py", *options, "tracking=none", "figures=false", cwd=tmp_path)
    one, other = (place / "outputs" / "x" / "run" for place in (folder, tmp_path))
    assert history(one) == history(other)
    weights = [load_file(place / "model" / "model.safetensors") for place in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_the_store_holds_the_run_and_a_model_that_takes_the_table(trained):
    folder, _ = trained
    uri = f"sqlite:///{folder}/mlflow.db"
    (found,) = MlflowClient(uri).search_runs(["1"])
    rows = history(folder / "outputs" / "x" / "run")
    assert found.info.status == "FINISHED"
    for name in ("val/r2", "val/mae", "val/rmse", "val/loss"):
        stored = MlflowClient(uri).get_metric_history(found.info.run_id, name)
        assert [metric.value for metric in stored] == [row[name] for row in rows]
        best = (max if name == "val/r2" else min)(row[name] for row in rows)
        assert found.data.metrics[f"best/{name}"] == best
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{found.info.run_id}/model")
    frame = pd.read_csv(folder / "houses.csv")
    expected = Predictor(folder / "outputs" / "x" / "run" / "model").predict(frame)
    pd.testing.assert_frame_equal(model.predict(frame), expected)


@pytest.mark.slow
def test_evaluated_and_predicted_as_scikit_learn_counts(trained):
    folder, options = trained
    (folder / "houses_test.csv").unlink(missing_ok=True)
    run("evaluate.py", cwd=folder)
    found = json.loads((folder / "outputs" / "x" / "run" / "metrics.json").read_text())
    run("predict.py", "input=houses.csv", "output=told.csv", cwd=folder)
    told = pd.read_csv(folder / "told.csv")
    assert list(told)[:7] == ["size", "rooms", "town", "price", "rent", "cheap", "large"]
    names = [name.removeprefix("predicted_") for name in list(told)[7:]]
    assert f"data.target=[{','.join(names)}]" in options or f"data.target={names[0]}" in options
    from perceptrail.data.table import table

    data = table(path=told, target=names, kind="numbers", features=["size"], test=0.25)
    size, y = data.test()
    rows = told[told["size"].astype(np.float32).isin(size[:, 0])]
    rows = rows[rows[names[0]].astype(np.float32).isin(y.reshape(len(y), -1)[:, 0])]
    assert len(rows) == len(y) == 50
    true, predicted = rows[names], rows[[f"predicted_{name}" for name in names]]
    assert found["test/r2"] == pytest.approx(r2_score(true, predicted), rel=1e-4)
    assert found["test/mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-4)
    figures = {path.name for path in (folder / "outputs" / "x" / "run" / "figures").rglob("*.png")}
    assert figures == {"learning_curves.png", "predicted_against_true.png", "residuals.png"}


@every_task
def test_a_stack_is_as_one_by_one(chosen, tmp_path):
    houses(tmp_path)
    own = [o.replace("houses.csv", f"{tmp_path}/houses.csv") for o in (*TABLE, *CHOSEN[chosen])]
    jobs = [
        [*own, *SMALL, "model.dropout=0", f"seed={k}", f"optimizer.lr=0.00{k + 1}"] for k in (0, 1)
    ]
    for launcher in ("basic", "fused"):
        launch(launcher, jobs, tmp_path / launcher)
    for k in ("0", "1"):
        one, other = history(tmp_path / "basic" / k), history(tmp_path / "fused" / k)
        assert [list(row) for row in one] == [list(row) for row in other]
        for left, right in zip(one, other, strict=True):
            assert right == pytest.approx(left, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_search_prunes_and_finds_the_best_by_a_tasks_measure(tmp_path):
    houses(tmp_path)
    search = ("hparams_search=optuna", "hydra.sweeper.n_trials=6", "monitor.metric=val/r2")
    search += (
        "monitor.mode=max",
        "hydra.sweeper.direction=maximize",
        "optimizer.lr=interval(0.0001,0.1)",
    )
    run(
        "train.py",
        "-m",
        *TABLE,
        *CHOSEN["one number"],
        *SMALL,
        *search,
        "hydra.sweeper.study_name=s",
        cwd=tmp_path,
    )
    trials = pd.read_csv(tmp_path / "searches" / "s" / "trials.csv")
    assert len(trials) == 6
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    runs = MlflowClient(uri).search_runs(["1"], "metrics.`best/val/r2` > -1000")
    best = max(found.data.metrics["best/val/r2"] for found in runs)
    assert best == pytest.approx(trials["value"].max())


NUMBER = ("task=regression", "data.target=price")
BAD = {
    ("data.target=price",): "the targets of houses (price) are numbers, and must be",
    (
        "task=regression",
        "data.target=town",
    ): "data.target=town: must hold numbers",
    ("task=regression", "data.target=town", "data.kind=classes"): "are the classes A, B, and must",
    (*NUMBER, "monitor.metric=val/acc", "monitor.mode=max"): (
        "monitor.metric=val/acc: must be one of train/loss, val/loss, val/r2"
    ),
    (*NUMBER, "task.loss=mes"): "task.loss=mes: must be",
    (*NUMBER, "regularization.label_smoothing=0.1"): (
        "regularization.label_smoothing=0.1: must be 0"
    ),
    (*NUMBER, "task.loss={_target_: torch.nn.NoLoss}"): (
        "task.loss._target_=torch.nn.NoLoss: cannot be imported"
    ),
    (
        "task=regression",
        "data.target=price",
        "task.loss={_target_: torch.nn.MSELoss, reduction: none}",
    ): ("task.loss: must return the mean loss, a scalar tensor, not [2, 1]"),
    ("task=regresion", "data.target=price"): "did you mean 'regression'",
}


@pytest.mark.slow
def test_what_does_not_go_with_a_task_is_said_in_a_line(tmp_path):
    houses(tmp_path)
    started = {
        given: Command(
            "train.py", "data=table", "data.path=houses.csv", *given, "trainer=cpu", cwd=tmp_path
        )
        for given in BAD
    }
    for given, command in started.items():
        command.wait()
        assert command.code == 1, (given, command.output)
        assert BAD[given] in command.output
        assert "Traceback" not in command.output
        assert len(command.output.strip().splitlines()) <= 2, command.output
