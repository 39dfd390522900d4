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
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    explained_variance_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    mean_absolute_percentage_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from perceptrail import diagrams, tasks
from perceptrail.data.table import table
from perceptrail.extras import Extras
from perceptrail.losses import probabilities
from perceptrail.prediction import Predictor
from perceptrail.tasks import Classification, Multilabel, Regression

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


LABELS = np.random.default_rng(1).integers(0, 2, (90, 3))
CLASSES = np.random.default_rng(2).integers(0, 4, 90)


def by_scikit_learn(probability, y):
    """What its functions find, by the names that `metrics` has for them."""
    told = probability.argmax(1)
    two = probability.shape[1] == 2
    average = {"average": "binary" if two else "macro"}
    area = probability[:, 1] if two else probability
    held = y if two else np.eye(probability.shape[1])[y]
    return {
        "f1": f1_score(y, told, **average),
        "precision": precision_score(y, told, **average),
        "recall": recall_score(y, told, **average),
        "auroc": roc_auc_score(y, area, **({} if two else {"multi_class": "ovr"})),
        "average_precision": average_precision_score(held, area),
        "balanced_accuracy": balanced_accuracy_score(y, told),
        "mcc": matthews_corrcoef(y, told),
        "kappa": cohen_kappa_score(y, told),
    }


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_classes_are_as_scikit_learn_has_them(classes):
    task = Classification([str(k) for k in range(classes)])
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    outputs, y = outputs[:, : 1 if classes == 2 else 4], CLASSES % classes
    expected = by_scikit_learn(probabilities(outputs).numpy(), y)
    extras = Extras([*expected, "acc"], task)
    for part in (slice(50), slice(50, None)):
        extras.update(task, outputs[part], torch.from_numpy(y)[part])
    found = {name: float(value) for name, value in extras.compute().items()}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(classes):
    task = Classification([str(k) for k in range(classes)])
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    outputs, y = outputs[:, : 1 if classes == 2 else 4], CLASSES % classes
    extras = Extras(["ece"], task)
    extras.update(task, outputs, torch.from_numpy(y))
    probability = probabilities(outputs).numpy()
    sure, right = probability.max(1), probability.argmax(1) == y
    bins = np.ceil(sure * 15).astype(int)
    gaps = [
        (bins == k).mean() * abs(sure[bins == k].mean() - right[bins == k].mean())
        for k in np.unique(bins)
    ]
    assert float(extras.compute()["ece"]) == pytest.approx(sum(gaps), rel=1e-5)


def test_what_is_measured_of_labels_is_as_scikit_learn_has_it():
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32))
    y, task = torch.from_numpy(LABELS).float(), Multilabel("abc")
    found = task.metrics(task.sums(outputs, y), 90)
    told = task.predicted(outputs).numpy()
    area = roc_auc_score(LABELS, outputs.sigmoid().numpy())
    assert float(found["exact"]) == pytest.approx(accuracy_score(LABELS, told))
    assert float(found["acc"]) == pytest.approx((told == LABELS).mean())
    loss = np.mean(
        [log_loss(LABELS[:, k], outputs[:, k].sigmoid().double().numpy()) for k in range(3)]
    )
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-5)
    extras = Extras(["f1", "auroc"], task)
    extras.update(task, outputs, y)
    expected = {"f1": f1_score(LABELS, told, average="macro"), "auroc": area}
    assert {k: float(v) for k, v in extras.compute().items()} == pytest.approx(expected)


@pytest.mark.parametrize("several", [1, 3])
def test_metrics_of_numbers_are_as_scipy_has_them(several):
    outputs, y = numbers(90, several)
    outputs = outputs + torch.sin(y)
    task = Regression.of(list("abc")[:several], y)
    extras = Extras(["pearson", "spearman", "mape", "explained_variance"], task)
    extras.update(task, outputs, y[:, 0] if several == 1 else y)
    told, true = task.predicted(outputs).numpy(), y.double().numpy()
    columns = list(zip(told.T, true.T, strict=True))
    assert {k: float(v) for k, v in extras.compute().items()} == pytest.approx(
        {
            "pearson": np.mean([pearsonr(*pair).statistic for pair in columns]),
            "spearman": np.mean([spearmanr(*pair).statistic for pair in columns]),
            "mape": mean_absolute_percentage_error(true, told),
            "explained_variance": explained_variance_score(true, told),
        },
        rel=1e-3,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_slopes_of_labels_and_of_weighted_classes_are_what_autograd_finds(smoothing):
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32))
    y = torch.from_numpy(CLASSES % 3)
    weights = torch.tensor([3.0, 1.0, 0.5])
    for task, target, terms in (
        (Multilabel("abc"), torch.from_numpy(LABELS).float(), None),
        (Classification("abc", class_weights=[3.0, 1.0, 0.5]), y, weights[y]),
    ):
        given = outputs.clone().requires_grad_()
        if terms is None:
            soft = target * (1 - smoothing) + smoothing / 2
            expected = F.binary_cross_entropy_with_logits(given, soft)
        else:
            each = F.cross_entropy(given, y, reduction="none", label_smoothing=smoothing)
            expected = (terms * each).mean()
        expected.backward()
        loss, slope = task.loss_and_slope(outputs, target, label_smoothing=smoothing, share=0.5)
        torch.testing.assert_close((loss, slope), (expected.detach() / 2, given.grad / 2))
        torch.testing.assert_close(
            task.loss(outputs, target, label_smoothing=smoothing), expected.detach()
        )
    losses, slopes = Multilabel("abc").losses_and_slopes(
        torch.stack([outputs, outputs / 2]),
        torch.from_numpy(LABELS).float().expand(2, -1, -1),
        label_smoothing=torch.tensor([[smoothing], [0.3]]),
    )
    own, its = Multilabel("abc").loss_and_slope(
        outputs / 2, torch.from_numpy(LABELS).float(), label_smoothing=0.3
    )
    torch.testing.assert_close((losses[1], slopes[1]), (own, its))


def test_balanced_weights_are_scikit_learns():
    y = np.array([0] * 70 + [1] * 20 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert Classification.balanced(torch.from_numpy(y), classes=3) == pytest.approx(expected)


def test_the_curve_is_scikit_learns():
    score = np.round(np.random.default_rng(0).normal(size=90), 1)  # some of which are equal
    true = LABELS[:, 0]
    x, y, _ = roc_curve(true, score, drop_intermediate=False)
    found = diagrams.curve(true, score)
    np.testing.assert_allclose(found, (x, y))
    assert diagrams.area(*found) == pytest.approx(roc_auc_score(true, score))


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
    "labels": (
        *("task=multilabel", "data.target=[cheap,large]", "data.features=[size,rooms,price]"),
        "metrics=[f1,auroc]",
    ),
    "classes": (
        *("data.target=cheap", "data.features=[size,rooms,town]", "metrics=[accuracy,f1,ece]"),
        "task.class_weights=[1,1.5]",
    ),
    "numbers": (
        "task=regression",
        "data.target=[price,rent]",
        "task.loss=huber",
        "model.dropout=0",
    ),
}
every_task = pytest.mark.parametrize("chosen", list(CHOSEN))


FIGURES = {
    "task=regression": {"predicted_against_true", "residuals"},
    "task=multilabel": {"roc_and_reliability"},
    "data.target=cheap": {"roc_and_reliability", "confusion_matrix"},
}


def houses(folder: Path) -> Path:
    """A table of houses, in a folder."""
    rng = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame({"size": rng.normal(100, 30, n).round(1), "rooms": rng.integers(1, 8, n)})
    frame["town"] = rng.choice(["A", "B"], n)
    frame["price"] = 2000 * frame["size"] + 20_000 * (frame["town"] == "B") + rng.normal(0, 99, n)
    frame["rent"] = (frame["price"] / 300 + rng.normal(0, 9, n)).round(1)
    frame["cheap"] = (frame["price"] < 190_000 + rng.normal(0, 20_000, n)).astype(int)
    frame["large"] = (frame["size"] > 100 + rng.normal(0, 9, n)).astype(int)
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
    for name in [name for name in rows[0] if name.startswith("val/")]:
        stored = MlflowClient(uri).get_metric_history(found.info.run_id, name)
        assert [metric.value for metric in stored] == [row[name] for row in rows]
        lowest = name.endswith(("loss", "mae", "rmse", "ece"))
        best = (min if lowest else max)(row[name] for row in rows)
        assert found.data.metrics[f"best/{name}"] == best
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"runs:/{found.info.run_id}/model")
    frame = pd.read_csv(folder / "houses.csv")
    expected = Predictor(folder / "outputs" / "x" / "run" / "model").predict(frame)
    pd.testing.assert_frame_equal(model.predict(frame), expected)


@pytest.mark.slow
def test_evaluated_and_predicted_as_scikit_learn_counts(trained):
    """The rows of the test are found in the table of what was told, by their sizes."""
    folder, options = trained
    run("evaluate.py", cwd=folder)
    found = json.loads((folder / "outputs" / "x" / "run" / "metrics.json").read_text())
    run("predict.py", "input=houses.csv", "output=told.csv", cwd=folder)
    told, given = pd.read_csv(folder / "told.csv"), pd.read_csv(folder / "houses.csv")
    pd.testing.assert_frame_equal(told[list(given)], given)
    choice = next(o for o in options if o.startswith("data.target="))
    names = choice.removeprefix("data.target=").strip("[]").split(",")
    kind = "classes" if names == ["cheap"] else "numbers"
    numbered = told.assign(row=np.arange(len(told), dtype=float))
    data = table(path=numbered, target=names, kind=kind, features=["row"], test=0.25)
    rows = told.iloc[data.test()[0][:, 0].astype(int)]
    true, columns = rows[names], rows.filter(like="predicted_")
    if "task=regression" in options:
        expected = {"r2": r2_score(true, columns), "mae": mean_absolute_error(true, columns)}
    elif "task=multilabel" in options:
        likely = columns[["predicted_cheap", "predicted_large"]]
        assert list(columns["predicted_labels"].fillna("")) == [
            " ".join(n for n in names if row[f"predicted_{n}"] > 0.5) for _, row in rows.iterrows()
        ]
        expected = {
            "exact": accuracy_score(true, likely > 0.5),
            "f1": f1_score(true, likely > 0.5, average="macro"),
            "auroc": roc_auc_score(true, likely),
        }
    else:
        expected = {
            "acc": accuracy_score(true, columns["predicted_label"]),
            "f1": f1_score(true, columns["predicted_label"]),
        }
    assert {k: found[f"test/{k}"] for k in expected} == pytest.approx(expected, rel=1e-4)
    drawn = {path.stem for path in (folder / "outputs" / "x" / "run" / "figures").rglob("*.png")}
    assert drawn - {"learning_curves"} == next(v for k, v in FIGURES.items() if k in options)


@every_task
def test_a_stack_is_as_one_by_one(chosen, tmp_path, capfd):
    houses(tmp_path)
    own = [o.replace("houses.csv", f"{tmp_path}/houses.csv") for o in (*TABLE, *CHOSEN[chosen])]
    jobs = [
        [*own, *SMALL, "model.dropout=0", f"seed={k}", f"optimizer.lr=0.00{k + 1}"] for k in (0, 1)
    ]
    for launcher in ("basic", "fused"):
        launch(launcher, jobs, tmp_path / launcher)
    said = capfd.readouterr().out
    assert ("Alone, because of task.class_weights" in said) == (chosen == "classes")
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
    (
        "data.target=cheap",
        "metrics=[mape]",
    ): "mape does not go with task=classification",
    ("data.target=cheap", "metrics=[f2]"): ": must be a list of some of",
    ("data.target=cheap", "monitor.metric=val/f1", "monitor.mode=max"): "metrics=[f1] adds it",
    ("data.target=cheap", "metrics=[top5]"): "metrics: top5:",
    ("data.target=cheap", "task.class_weights=[1]"): "must hold a number for each of the 2 classes",
    ("data.target=cheap", "task.class_weights=even"): "task.class_weights=even: must be null",
    ("task=multilabel", "data.target=[cheap,rooms]"): "(cheap, rooms) must be 0 or 1",
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
        said = command.output.strip().splitlines()
        assert len([line for line in said if "are taken for classes" not in line]) <= 2, said
