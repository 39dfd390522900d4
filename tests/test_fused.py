"""Networks trained as one stack, against the same networks trained one by one."""

import json
from functools import partial
from statistics import mean, stdev

import pytest
import torch
from hydra.core.utils import JobStatus
from launching import assert_alike, history, launch
from mlflow.tracking import MlflowClient

from perceptrail import linear
from perceptrail.activations import ACTIVATIONS
from perceptrail.callbacks import DivergenceError
from perceptrail.errors import UserError
from perceptrail.fused import stack
from perceptrail.fused.stack import Stack
from perceptrail.model import MLP, NORMS

SMALL = ("data=spirals", "data.points=150", "model.hidden=[12,8]", "model.dropout=0")
DIGITS = ("data=digits", "data.val_size=900", "model.hidden=[16]", "model.dropout=0")
EPOCHS = "trainer.max_epochs=3"


def test_every_activation(tmp_path):
    assert_alike([[*SMALL, EPOCHS, f"model.activation={name}"] for name in ACTIVATIONS], tmp_path)


# Batch norm takes a bias before it away again: that gradient is rounding error, which adaptive
# optimizers scale up to steps like any other's, unless they divide by something larger.
ADAPTIVE = ("adam", "adamw", "rmsprop")


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_every_optimizer(tmp_path, norm):
    jobs = [
        [*SMALL, EPOCHS, f"model.norm={norm or 'null'}", f"optimizer={optimizer}", *own, *eps]
        for optimizer in ("sgd", "momentum", *ADAPTIVE)
        for eps in ([["+optimizer.eps=1e-3"]] if optimizer in ADAPTIVE else [[]])
        for own in (
            ("seed=1", "optimizer.weight_decay=0.01"),
            ("seed=2", "optimizer.lr=0.003", "schedule=cosine"),
        )
    ]
    alike = [
        [*job, "optimizer.weight_decay=0.02", f"seed={k}"] for job in jobs[::4] for k in (1, 2)
    ]
    assert_alike(alike, tmp_path / "alike")
    assert_alike(jobs, tmp_path)


def test_every_regularization(tmp_path):
    """Many classes, one shape, other settings in each: label smoothing, penalties, bounds."""
    settings = {
        "label_smoothing": 0.1,
        "l1": 1e-3,
        "l2": 1e-2,
        "gradient_clip": 0.5,
        "max_norm": 0.7,
    }
    jobs = [[*DIGITS, EPOCHS, f"regularization.{key}={v}"] for key, v in settings.items()]
    assert_alike([*jobs, [*DIGITS, EPOCHS, "seed=1"]], tmp_path / "alike")
    paces = [[*job, f"optimizer.lr={0.001 * k}"] for k, job in enumerate(jobs, 1)]
    assert_alike(paces, tmp_path / "each")


def test_layers_of_one_unit(tmp_path):
    assert_alike([[*SMALL, EPOCHS, "model.hidden=[1,1]", f"seed={k}"] for k in (1, 2)], tmp_path)


@pytest.mark.parametrize("intel", [True, False])
def test_large_layers(tmp_path, monkeypatch, intel):
    """They go by other products; members that are alike but for the seed, and others."""
    monkeypatch.setattr(linear, "INTEL", intel)
    monkeypatch.setattr(stack, "INTEL", intel)
    jobs = [["model.hidden=[512]", f"seed={k}"] for k in (1, 2)]
    jobs += [["model.hidden=[512,256]", f"optimizer.lr={rate}"] for rate in (0.001, 0.003, 0.01)]
    stopping = ("trainer.max_epochs=6", "callbacks.early_stopping.patience=1")
    assert_alike([[*DIGITS, *own, *stopping] for own in jobs], tmp_path)


def test_members_alike_but_for_the_seed_stop_early_each_in_its_time(tmp_path):
    early = ("optimizer.lr=0.05", "callbacks.early_stopping.patience=1", "trainer.max_epochs=12")
    assert_alike([[*SMALL, *early, f"seed={k}"] for k in range(6)], tmp_path)
    assert len({len(history(tmp_path / "fused" / str(k))) for k in range(6)}) > 1


def test_members_stop_early_each_in_its_time(tmp_path):
    jobs = [
        [*SMALL, "trainer.max_epochs=12", f"callbacks.early_stopping.patience={p}", *own]
        for p in (1, 3)
        for own in (
            ["optimizer.lr=0.1", "seed=3"],
            ["seed=1", "monitor.metric=val/acc", "monitor.mode=max"],
            ["callbacks.early_stopping.min_delta=0.02"],
        )
    ]
    assert_alike(jobs, tmp_path)
    lengths = {len(history(tmp_path / "fused" / str(k))) for k in range(len(jobs))}
    assert len(lengths) > 2


def test_jobs_of_several_shapes_and_some_alone(tmp_path, capsys):
    jobs = [
        [*SMALL, EPOCHS, "seed=1"],
        [*SMALL, EPOCHS, "model.hidden=[5]"],
        [*SMALL, EPOCHS, "schedule=plateau"],
        [*SMALL, EPOCHS, "data.batch_size=1000"],
        [*SMALL, EPOCHS, "model.hidden=[5]", "seed=1"],
        [*SMALL, EPOCHS, "trainer.accelerator=gpu"],
        [*SMALL, EPOCHS, "+trainer.limit_train_batches=2"],
        [*SMALL, EPOCHS, "+distillation.x=1"],
    ]
    done = launch("fused", jobs, tmp_path)
    status = [job.status for job in done]
    failed = {3, 7} if torch.cuda.is_available() else {3, 5, 7}
    assert {k for k, s in enumerate(status) if s == JobStatus.FAILED} == failed
    with pytest.raises(UserError, match=r"data.batch_size=1000: must be 1 to"):
        _ = done[3].return_value
    said = [line for line in capsys.readouterr().out.splitlines() if "Alone" in line]
    for reason, numbers in {
        "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau": "#2",
        "trainer.limit_train_batches": "#6",
        "distillation.x": "#7",
        "data.batch_size=1000: must be 1 to": "#3",
    }.items():
        (line,) = [line for line in said if reason in line]
        assert line.endswith(numbers)


def test_a_member_that_diverges_fails_alone(tmp_path):
    jobs = [
        [*SMALL, EPOCHS, "optimizer=sgd"],
        [*SMALL, EPOCHS, "optimizer=sgd", "optimizer.lr=1e30"],
    ]
    good, bad = launch("fused", jobs, tmp_path)
    assert good.return_value > 0
    with pytest.raises(DivergenceError, match="became nan"):
        _ = bad.return_value


def note(seen, y):
    """A loss that keeps the logits."""
    seen.append(y)
    return y.mean((1, 2)), torch.zeros_like(y)


def test_dropout_of_each_member():
    """The share that is zeroed, and the scale of the rest, where the weights are the identity."""
    rates, n = [0.0, 0.25, 0.5], 100
    networks = [MLP(n, n, hidden=[n], activation="identity", input_dropout=r) for r in rates]
    for network in networks:
        for weight in network.weights:
            torch.nn.init.eye_(weight)
    stack = Stack(networks, device=torch.device("cpu"))
    torch.manual_seed(0)
    for hidden in ([0.0, 0.0, 0.0], [0.5, 0.0, 0.2]):
        stack.set_dropout(torch.tensor(hidden))
        seen = []
        stack.learn(torch.ones(3, 2000, n), partial(note, seen))
        (y,) = seen
        kept = [(1 - a) * (1 - b) for a, b in zip(rates, hidden, strict=True)]
        # Four standard deviations of a share of 200,000 draws are at most 0.0045.
        shares = (y != 0).double().mean((1, 2)).tolist()
        assert shares == pytest.approx(kept, abs=0.0045)
        for share, values in zip(kept, y, strict=True):
            assert values.max().item() == pytest.approx(1 / share)
            assert values.mean().item() == pytest.approx(1, abs=0.02)
        assert (stack(torch.ones(3, 5, n)) == 1).all()


def test_dropout_trains_as_alone_in_distribution(tmp_path):
    jobs = [[*DIGITS, EPOCHS, "model.dropout=0.4", f"seed={seed}"] for seed in range(12)]
    alone, fused = (
        [job.return_value for job in launch(launcher, jobs, tmp_path / launcher)]
        for launcher in ("basic", "fused")
    )
    differences = [a - b for a, b in zip(alone, fused, strict=True)]
    assert all(differences)
    assert abs(mean(differences)) < 4 * stdev(differences) / len(jobs) ** 0.5


def test_each_job_has_its_mlflow_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    own = [*SMALL, EPOCHS, "data.points=150", f"tracking.uri={uri}", "tracking.experiment=fused"]
    jobs = [[*own, f"seed={seed}", f"optimizer.lr={lr}"] for seed, lr in ((3, 0.01), (4, 0.02))]
    jobs.append([*own, "optimizer=sgd", "optimizer.lr=1e30"])
    launch("fused", jobs, tmp_path / "jobs")
    client = MlflowClient(uri)
    for number, (seed, lr) in enumerate(((3, 0.01), (4, 0.02))):
        folder = tmp_path / "jobs" / str(number)
        left = json.loads((folder / "metrics.json").read_text())
        run = client.get_run(left["run_id"])
        assert run.info.status == "FINISHED"
        assert (run.data.params["seed"], run.data.params["optimizer.lr"]) == (str(seed), str(lr))
        for name in ("val/loss", "best/val/loss", "time/fit_s"):
            assert run.data.metrics[name] == pytest.approx(left[name])
        rows = history(folder)
        for name in ("val/loss", "train/loss", "lr", "dropout"):
            stored = client.get_metric_history(left["run_id"], name)
            values = {m.step: m.value for m in stored}
            assert values == pytest.approx({row["step"]: row[name] for row in rows})
        (used,) = run.inputs.dataset_inputs
        assert used.dataset.name == "spirals"
        files = {a.path for a in client.list_artifacts(left["run_id"])}
        assert {"best.ckpt", "config", "environment", "history.csv", "metrics.json"} <= files
        assert run.outputs.model_outputs
    record = json.loads((tmp_path / "jobs" / "2" / "run.json").read_text())
    failed = client.get_run(record["run_id"])
    assert failed.info.status == "FAILED"
    assert "became nan" in failed.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_batch_norm_wants_more_than_one_example_in_every_batch(tmp_path, launcher):
    job = [*SMALL, "data.val_size=50", "model.norm=batch"]
    sizes = (1, 11, 33, 50)  # of 100 examples; 11 and 33 leave one over
    done = launch(launcher, [[*job, EPOCHS, f"data.batch_size={size}"] for size in sizes], tmp_path)
    for size, result in zip(sizes[:3], done, strict=False):
        with pytest.raises(UserError, match=rf"data.batch_size={size}: leaves one of the 100"):
            _ = result.return_value
    assert done[3].return_value > 0
