"""Each seam for each task, and for networks of every kind: resumed, searched, recorded, stacked."""

import json
import signal

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from houses import houses
from launching import history as rows
from launching import launch
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from optuna.storages.journal import JournalFileBackend
from running import Command, run
from safetensors.torch import load_file
from search_app.lab import Tree
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, roc_auc_score

from perceptrail.build import dataset
from perceptrail.data.dataset import as_float
from perceptrail.data.sets import digits
from perceptrail.data.table import table
from perceptrail.prediction import Predictor

TABLE = ("data=table", "data.path=houses.csv", "data.test=0.25", "model.hidden=[8]")
DIGITS = ("data=digits", "data.train_size=200", "data.val_size=100")
SHORT = ("trainer=cpu", "trainer.max_epochs=4")
CHOSEN = {
    "one number": (
        *(*TABLE, "task=regression", "data.target=price", "data.features=[size,rooms,town]"),
        *("monitor.metric=val/mae", "monitor.mode=min"),
    ),
    "numbers": (
        *(*TABLE, "task=regression", "data.target=[price,rent]", "task.loss=huber"),
        *("metrics=[spearman]", "monitor.metric=val/r2", "monitor.mode=max", "model.dropout=0"),
    ),
    "labels": (
        *(*TABLE, "task=multilabel", "data.target=[cheap,large]"),
        *("data.features=[size,rooms,price]", "metrics=[f1,auroc]"),
        *("monitor.metric=val/exact", "monitor.mode=max"),
    ),
    "classes": (
        *(*TABLE, "data.target=cheap", "data.features=[size,rooms,town]"),
        *("metrics=[accuracy,f1,ece]", "task.class_weights=[1,1.5]"),
        *("monitor.metric=val/f1", "monitor.mode=max"),
    ),
    "pictures": (
        *(*DIGITS, "model=cnn", "model.channels=[3,4]", "model.hidden=16"),
        *("metrics=[top5]", "monitor.metric=val/acc", "monitor.mode=max"),
    ),
    "a module": (*DIGITS, "model=module", "model._target_=users_modules.Net"),
}
FIGURES = {
    "task=regression": {"predicted_against_true", "residuals"},
    "task=multilabel": {"roc_and_reliability"},
    "data.target=cheap": {"roc_and_reliability", "confusion_matrix"},
    "data=digits": {"confusion_matrix", "sample_images", "worst_mistakes"},
}
every_task = pytest.mark.parametrize("chosen", CHOSEN)


def metrics(run_dir):
    """All that is in metrics.json, but for times and names."""
    found = json.loads((run_dir / "metrics.json").read_text())
    return {
        k: v for k, v in found.items() if k != "run_id" and "time/" not in k and "per_" not in k
    }


@pytest.fixture(scope="module", params=CHOSEN)
def trained(request, tmp_path_factory):
    """A recorded run that was killed in its third epoch and gone on with, and its overrides."""
    folder = tmp_path_factory.mktemp("trained")
    houses(folder)
    options = [*CHOSEN[request.param], *SHORT, "hydra.run.dir=outputs/x/run"]
    kill = ("+callbacks.kill._target_=killing.Kill", "+callbacks.kill.epoch=2")
    killed = Command("train.py", *options, *kill, cwd=folder).wait()
    assert killed.code == -signal.SIGKILL, killed.output
    run("train.py", "resume=latest", cwd=folder)
    return folder, folder / "outputs" / "x" / "run", options


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_interrupted(trained, tmp_path):
    _, resumed, options = trained
    houses(tmp_path)
    run("train.py", *options, "tracking=none", "figures=false", cwd=tmp_path)
    whole = tmp_path / "outputs" / "x" / "run"
    assert rows(resumed) == rows(whole)
    weights = [load_file(place / "model" / "model.safetensors") for place in (resumed, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert metrics(resumed) == metrics(whole)


@pytest.mark.slow
def test_the_store_holds_all_of_the_run(trained, monkeypatch):
    folder, run_dir, _ = trained
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs(["1"])
    assert found.info.status == "FINISHED"
    history = rows(run_dir)
    for name in history[0].keys() - {"step"}:
        stored = client.get_metric_history(found.info.run_id, name)
        assert [metric.value for metric in stored] == [row[name] for row in history], name
        assert [metric.step for metric in stored] == [row["step"] for row in history]
    for name in [name for name in history[0] if name.startswith("val/")]:
        lowest = name.endswith(("loss", "mae", "rmse", "ece"))
        best = (min if lowest else max)(row[name] for row in history)
        assert found.data.metrics[f"best/{name}"] == best
    cfg = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    (params,) = pd.json_normalize(OmegaConf.to_container(cfg)).to_dict("records")
    given = {k: str(v) for k, v in params.items() if v != {} and "$" not in str(v)}
    assert len(given) > 50
    del given["resume"]
    assert {k: found.data.params[k] for k in given} == given
    monkeypatch.chdir(folder)
    (used,) = found.inputs.dataset_inputs
    data = dataset(cfg)
    assert (used.dataset.name, used.dataset.digest) == (data.name, data.digest[:36])
    sizes = json.loads(used.dataset.profile)
    assert sizes["train"] == {"houses": 120, "digits": 200}[data.name]


@pytest.mark.slow
def test_the_stored_model_answers_as_the_run_does(trained):
    folder, run_dir, options = trained
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    run_id = json.loads((run_dir / "metrics.json").read_text())["run_id"]
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    asked = pd.read_csv(folder / "houses.csv")
    if "data=digits" in options:
        asked = as_float(digits().test()[0])
    expected = Predictor(run_dir / "model").predict(asked)
    pd.testing.assert_frame_equal(model.predict(asked), expected)


@pytest.mark.slow
def test_evaluated_and_predicted_as_scikit_learn_counts(trained):
    """The rows of the test are found in the table of what was told, by their number."""
    folder, run_dir, options = trained
    run("evaluate.py", cwd=folder)
    found = json.loads((run_dir / "metrics.json").read_text())
    drawn = {path.stem for path in (run_dir / "figures" / "test").glob("*.png")}
    assert drawn == next(names for option, names in FIGURES.items() if option in options)
    if "data=digits" in options:
        x, y = digits().test()
        told = Predictor(run_dir / "model").predict(as_float(x))["label"].astype(int)
        assert found["test/acc"] == pytest.approx(accuracy_score(y, told))
        return
    run("predict.py", "input=houses.csv", "output=told.csv", cwd=folder)
    told, given = pd.read_csv(folder / "told.csv"), pd.read_csv(folder / "houses.csv")
    pd.testing.assert_frame_equal(told[list(given)], given)
    choice = next(o for o in options if o.startswith("data.target="))
    names = choice.removeprefix("data.target=").strip("[]").split(",")
    kind = "classes" if names == ["cheap"] else "numbers"
    numbered = told.assign(row=np.arange(len(told), dtype=float))
    data = table(path=numbered, target=names, kind=kind, features=["row"], test=0.25)
    tested = told.iloc[data.test()[0][:, 0].astype(int)]
    true, columns = tested[names], tested.filter(like="predicted_")
    if "task=regression" in options:
        expected = {"r2": r2_score(true, columns), "mae": mean_absolute_error(true, columns)}
    elif "task=multilabel" in options:
        likely = columns[["predicted_cheap", "predicted_large"]]
        assert list(columns["predicted_labels"].fillna("")) == [
            " ".join(n for n in names if row[f"predicted_{n}"] > 0.5)
            for _, row in tested.iterrows()
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


@pytest.mark.slow
@every_task
def test_a_search_gives_up_by_the_tasks_measure_and_the_store_says_so(chosen, tmp_path):
    houses(tmp_path)
    run(
        *("train.py", "-m", *CHOSEN[chosen], *SHORT, "figures=false", "hparams_search=optuna"),
        *("hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=5", "hydra.sweeper.figures=false"),
        *("hydra/sweeper/sampler=grid", "optimizer.lr=choice(0.03,0.003,1e-6,1e-7,1e-8)"),
        *(
            "hydra.sweeper.enqueue=[{optimizer.lr: 0.03}]",
            "hydra.sweeper.pruner.n_startup_trials=1",
        ),
        cwd=tmp_path,
    )
    journal = JournalFileBackend(str(tmp_path / "searches" / "s" / "study.journal"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(journal))
    tree = Tree(tmp_path, "perceptrail")
    assert tree.outcomes == {trial.number: trial.state.name for trial in study.trials}
    assert set(tree.outcomes.values()) == {"COMPLETE", "PRUNED"}
    monitored = next((o for o in CHOSEN[chosen] if o.startswith("monitor.metric=")), "=val/loss")
    name = monitored.partition("=")[2]
    for trial, stored in zip(study.trials, tree.children, strict=True):
        history = tree.client.get_metric_history(stored.info.run_id, name)
        assert [metric.value for metric in history] == list(trial.intermediate_values.values())
        assert len(history) == 4 if trial.state.name == "COMPLETE" else len(history) < 4
        assert stored.data.params["optimizer.lr"] == str(trial.params["optimizer.lr"])
    best = tree.children[study.best_trial.number]
    assert best.data.metrics[f"best/{name}"] == study.best_value
    assert tree.parent.data.metrics["trials/pruned"] == sum(
        trial.state.name == "PRUNED" for trial in study.trials
    )


@every_task
def test_a_stack_is_as_one_by_one(chosen, tmp_path, capfd):
    houses(tmp_path)
    own = [o.replace("houses.csv", f"{tmp_path}/houses.csv") for o in (*CHOSEN[chosen], *SHORT)]
    # Its numbers a stack draws otherwise.
    none = "+model.rate=0" if chosen == "a module" else "model.dropout=0"
    jobs = [[*own, none, f"seed={k}", f"optimizer.lr=0.00{k + 1}"] for k in (0, 1)]
    for launcher in ("basic", "fused"):
        launch(launcher, jobs, tmp_path / launcher)
    assert "Alone" not in capfd.readouterr().out
    for k in ("0", "1"):
        one, other = rows(tmp_path / "basic" / k), rows(tmp_path / "fused" / k)
        assert [list(row) for row in one] == [list(row) for row in other]
        for left, right in zip(one, other, strict=True):
            assert right == pytest.approx(left, rel=1e-3, abs=1e-5)
