"""A LightningModule of the user's own: trained as plain Lightning does it, with all the seams."""

import csv
import json

import mlflow
import numpy as np
import optuna
import pytest
import pytorch_lightning as pl
import torch
from running import Command, run
from safetensors.torch import load_file
from users_modules import Autoencoder, Lit

from perceptrail import runs
from perceptrail.callbacks import EpochSeed
from perceptrail.data.dataset import as_float
from perceptrail.data.module import DataModule
from perceptrail.data.sets import digits
from perceptrail.model import Standardise
from perceptrail.network import load

LIT = ("task=own", "task._target_=users_modules.Lit", "monitor.metric=val_loss", "data=digits")
QUICK = ("tracking=none", "figures=false", "trainer.max_epochs=4", "hydra.run.dir=run")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    from pathlib import Path

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def train(folder, *overrides):
    run("train.py", *LIT, *QUICK, *overrides, cwd=folder)
    return folder / "run"


def rows(run_dir):
    timed = ("train/samples_per_second",)
    with (run_dir / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]


def by_hand(*, seed=0, epochs=4, batch_size=128, **options):
    """The same training by Lightning alone, on the same split."""
    torch.manual_seed(seed)
    data = DataModule(digits(), seed=seed, val_size=0.2, batch_size=batch_size)
    data.setup("fit")
    see = Standardise(data.mean, data.std)
    body = Lit(64, 10)

    class Part:
        def __init__(self, make):
            self.make = make

        def __len__(self):
            return len(self.make())

        def __iter__(self):
            return iter([(see(x), y) for x, y in self.make()])

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        deterministic=True,
        callbacks=[EpochSeed(seed)],
        **quiet,
        **options,
    )
    data.trainer = trainer
    trainer.fit(body, Part(data.train_dataloader), Part(data.val_dataloader))
    return body.state_dict(), float(trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 0.5, "accumulate_grad_batches": 3}], ids=["plain", "more"]
)
def test_the_training_is_that_of_plain_lightning(tmp_path, options):
    given = [f"+trainer.{name}={value}" for name, value in options.items()]
    run_dir = train(tmp_path, *given, "data.val_size=0.2", "data.batch_size=128")
    last = torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"]
    expected, loss = by_hand(**options)
    assert {k: v.tolist() for k, v in last.items()} == {k: v.tolist() for k, v in expected.items()}
    assert float(rows(run_dir)[-1]["val_loss"]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_interrupted(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole")
    kill = ("+callbacks.kill._target_=killing.Kill", "+callbacks.kill.epoch=2")
    died = Command("train.py", *LIT, *QUICK, *kill, cwd=tmp_path).wait()
    assert died.code == -9, died.output
    run("train.py", "resume=run", cwd=tmp_path)
    assert rows(tmp_path / "run") == rows(whole)
    stored = [load_file(f / "model" / "model.safetensors") for f in (whole, tmp_path / "run")]
    assert all(torch.equal(stored[0][name], stored[1][name]) for name in stored[0])


@pytest.mark.slow
def test_it_is_recorded_tested_asked_and_served(tmp_path, monkeypatch):
    overrides = ("tracking=mlflow", "figures=true")
    run_dir = train(tmp_path, *overrides, "trainer.max_epochs=8")
    run("evaluate.py", "run=run", cwd=tmp_path)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    network, _ = load(run_dir / "model")
    x, y = digits().test()
    with torch.no_grad():
        outputs = network(torch.from_numpy(as_float(x)))
    right = (outputs.argmax(1).numpy() == y).mean()
    assert metrics["test/acc"] == pytest.approx(right)
    assert right > 0.9

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    stored = mlflow.get_run(metrics["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["task._target_"] == "users_modules.Lit"
    assert stored.data.metrics["test/acc"] == pytest.approx(right)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(metrics["run_id"], "val_loss")
    assert [m.value for m in history] == [float(row["val_loss"]) for row in rows(run_dir)]
    (model,) = client.search_logged_models([stored.info.experiment_id])
    monkeypatch.chdir(tmp_path)
    told = mlflow.pyfunc.load_model(model.model_uri).predict(x[:5].astype(np.float32))
    assert [int(label) for label in told["label"]] == outputs[:5].argmax(1).tolist()
    assert {f.name for f in (run_dir / "figures").glob("*.png")} >= {
        "learning_curves.png",
        "confusion_matrix.png",
    }


@pytest.mark.slow
def test_a_search_prunes_and_returns_what_the_module_logs(tmp_path):
    search = (
        *("-m", *LIT, "figures=false", "trainer.max_epochs=4", "+lab={why+how: both}"),
        *("hparams_search=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.study_name=own"),
        "+hydra.sweeper.params={+task.lr: 'choice(0.01, 0.0000001)'}",
        "hydra.sweeper.sampler={_target_: optuna.samplers.RandomSampler, seed: 0}",
        "+hydra.sweeper.pruner={_target_: optuna.pruners.PercentilePruner, percentile: 30.0, "
        "n_startup_trials: 1}",
    )
    run("train.py", *search, cwd=tmp_path)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "searches/own/study.journal"))
    )
    (study,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=study.study_name, storage=storage).trials
    states = {t.state.name for t in trials}
    assert len(trials) == 6
    assert "COMPLETE" in states
    assert states <= {"COMPLETE", "PRUNED"}
    best = min((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: t.value)
    assert str(next(iter(best.params.values()))) == "0.01"
    assert best.value == pytest.approx(min(best.intermediate_values.values()))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stored = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = [r for r in stored if "space.task.lr" in r.data.params]
    assert parent.data.params["space.task.lr"] == "choice(0.01, 0.0000001)"
    assert parent.info.status == "FINISHED"
    trials = [r for r in stored if r is not parent]
    assert {r.data.params["lab.why_how"] for r in trials} == {"both"}  # MLflow allows no plus
    assert len(trials) == 6


def test_a_module_without_outputs_is_trained_and_tested_by_its_own_steps(tmp_path):
    train(tmp_path, "task._target_=users_modules.Autoencoder", "monitor.metric=val/loss")
    tested = run("evaluate.py", "run=run", "tracking=none", cwd=tmp_path)
    assert "predict.py" not in tested.output
    network, _ = load(tmp_path / "run" / "model")
    assert isinstance(network.body, Autoencoder)
    x, _ = digits().test()
    with torch.no_grad():
        error = network.body._error(network.seen(torch.from_numpy(as_float(x)))).item()
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["test/loss"]
    assert found == pytest.approx(error, rel=1e-4)
    asked = Command("predict.py", "run=run", "image=.", "tracking=none", cwd=tmp_path).wait()
    assert asked.code != 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=deep"], "model: must be left out for task=own"),
        (["regularization.l1=0.1"], "regularization.l1=0.1: must be left out"),
        (["metrics=[f1]"], "metrics=['f1']: must be left out"),
        (["task._target_=torch.nn.ReLU"], "task._target_=torch.nn.ReLU: must make a Lightning"),
        (["task._target_=users_modules.Nothing"], "task._target_=users_modules.Nothing: cannot"),
        (["monitor.metric=val_f1", "callbacks.early_stopping=null"], "monitor.metric=val_f1: must"),
        (["+task.depth=3"], "task._target_=users_modules.Lit: TypeError: Lit.__init__() got an"),
    ],
)
def test_what_does_not_go_is_said_in_one_message(tmp_path, overrides, said):
    failed = Command("train.py", *LIT, *QUICK, *overrides, cwd=tmp_path).wait()
    assert failed.code != 0
    assert said in failed.output
    assert "Traceback" not in failed.output
    assert runs.find("run", root=tmp_path, finished=True) is None
