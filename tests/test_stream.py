"""Data that stream: every example once an epoch, repeatable to the bit, tested on the whole."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import Command, run
from safetensors.torch import load_file
from torch.utils.data import IterableDataset
from users_data import Jittered, Rings, rings

from perceptrail import measures
from perceptrail.data import stream
from perceptrail.data.stream import Stream, described, source_of
from perceptrail.errors import UserError
from perceptrail.network import load
from perceptrail.prediction import judge
from perceptrail.tasks import Classification

OWN = ("data=own", "tracking=none", "figures=false", "trainer.max_epochs=4", "hydra.run.dir=run")
LOADERS = (*OWN, "data._target_=users_data.Rings")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def streamed(workers=0, **options):
    source = source_of(Jittered(), wanted=True, workers=workers, said="jittered")
    data = Stream(
        described(source, name="jittered", said="jittered"),
        **{"batch_size": 50, "val_size": 0.2, "seed": 0, **options},
    )
    data.setup("fit")
    return data


class At:
    """As much of a trainer as the data look at."""

    world_size = 1

    def __init__(self, epoch):
        self.current_epoch = epoch
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def passed(data, epoch):
    data.trainer = At(epoch)
    torch.manual_seed(epoch)  # as at the start of an epoch
    return torch.cat([x for x, _ in data.train_dataloader()])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_training_example_once_in_an_order_of_its_own(workers):
    data = streamed(workers)
    first, second, again = (passed(data, epoch) for epoch in (0, 1, 0))
    rows = [{int(i) for i in x[:, 0]} for x in (first, second)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(first) == data.n_train == 384  # 600 less a fifth, less a fifth
    held = {int(i) for x, _ in data.val_dataloader() for i in x[:, 0]}
    assert len(held) == data.n_val == 96
    assert not held & rows[0]
    assert not torch.equal(first[:, 0], second[:, 0])
    by_row = [dict(zip(x[:, 0].tolist(), x[:, 1].tolist(), strict=True)) for x in (first, second)]
    assert by_row[0] != by_row[1]  # drawn anew
    assert torch.equal(first, again)


def test_what_was_drawn_before_does_not_matter():
    data = streamed(workers=0)
    torch.manual_seed(1)
    first = next(iter(data.train_dataloader()))[0][:, 0]
    torch.manual_seed(2)
    assert torch.equal(next(iter(data.train_dataloader()))[0][:, 0], first)
    state = torch.get_rng_state()
    iter(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_facts_are_those_of_the_examples():
    data = streamed(val_size=100)
    assert (data.shape, data.classes, data.outputs) == ((3,), ("inner", "outer"), 1)
    assert data.n_val == 100
    x = Jittered().x
    assert data.mean[1:] == pytest.approx(x.mean(0).tolist(), abs=0.1)
    assert data.std[1:] == pytest.approx(x.std(0).tolist(), abs=0.1)
    other = described(Rings(), name="rings", said="rings")
    assert (other.shape, other.classes) == ((2,), ("0", "1"))
    loaders = Stream(other, batch_size=1, val_size=1, seed=0)
    loaders.setup("fit")
    assert (loaders.mean, loaders.std, loaders.n_train, loaders.n_val) == (0.0, 1.0, 600, 200)


def test_metrics_are_of_all_where_few_are_held(monkeypatch):
    monkeypatch.setattr(stream, "HELD", 60)
    source = described(Rings(), name="rings", said="rings").streamed
    parts = list(stream.tested(source, classes=2))
    assert [len(y) for _, y in parts] == [100, 50, 50, 50, 50]
    network = torch.nn.Linear(2, 1)
    found = judge(network, *parts[0], task=Classification(("0", "1")), rest=parts[1:])
    x, y = (part.numpy() for part in rings(300, 2))
    whole = judge(network, x, y, task=Classification(("0", "1")))
    assert found.metrics == pytest.approx(whole.metrics)
    assert len(found.predicted) == 100


def rows(run_dir):
    with (run_dir / "history.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k != "train/samples_per_second"}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        ("data._target_=users_data.Jittered", "data.stream=true"),
        ("data._target_=users_data.Rings",),
    ],
    ids=["Dataset", "LightningDataModule"],
)
def test_killed_and_resumed_is_as_never_interrupted(tmp_path, data):
    (tmp_path / "whole").mkdir()
    run("train.py", *OWN, *data, cwd=tmp_path / "whole")
    kill = ("+callbacks.kill._target_=killing.Kill", "+callbacks.kill.epoch=2")
    died = Command("train.py", *OWN, *data, *kill, cwd=tmp_path).wait()
    assert died.code == -9, died.output
    run("train.py", "resume=run", cwd=tmp_path)
    both = tmp_path / "whole/run", tmp_path / "run"
    assert rows(both[0]) == rows(both[1])
    whole, resumed = (load_file(folder / "model/model.safetensors") for folder in both)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_a_lightning_data_module_is_learned_and_tested(tmp_path):
    trained = run("train.py", *LOADERS, "trainer.max_epochs=30", "figures=true", cwd=tmp_path)
    assert "come from their loader" in trained.output
    run("evaluate.py", "run=run", "tracking=none", cwd=tmp_path)
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    network, _ = load(tmp_path / "run/model")
    with torch.no_grad():
        x, y = rings(300, 2)
        right = ((network(x)[:, 0] > 0).long() == y).float().mean()
        x_val, y_val = rings(200, 1)
        right_val = ((network(x_val)[:, 0] > 0).long() == y_val).float().mean()
    assert found["test/acc"] == pytest.approx(float(right))
    assert found["test/acc"] > 0.95
    assert found["best/val/acc"] >= float(right_val) > 0.95
    assert measures.measure("val/acc").highest
    assert (tmp_path / "run/figures/decision_boundary.png").exists()


@pytest.mark.slow
def test_a_module_and_data_of_ones_own_go_together(tmp_path):
    own = ("task=own", "task._target_=users_modules.Lit", "monitor.metric=val_loss")
    run("train.py", *LOADERS, *own, "trainer.max_epochs=20", cwd=tmp_path)
    run("evaluate.py", "run=run", "tracking=none", cwd=tmp_path)
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    assert found["test/acc"] > 0.8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data._target_=users_data.Wrong"], "must give labels from 0 to 0, not 1"),
        (["data._target_=users_data.Triples"], "must give batches (x, y), not list"),
        (["data.augment={rotate: 5}"], "data.augment={'rotate': 5}: must be null"),
        (["data.train_size=5"], "data.train_size=5: must be null for data that stream"),
        (["data._target_=users_data.rings", "data.stream=true"], "data.stream=true: must be null"),
    ],
)
def test_what_cannot_be_streamed_is_said_in_one_message(tmp_path, overrides, said):
    failed = Command("train.py", *LOADERS, *overrides, cwd=tmp_path).wait()
    assert failed.code != 0
    assert said in failed.output
    assert "Traceback" not in failed.output


def test_one_process_alone_streams():
    data = streamed()
    data.trainer = At(0)
    data.trainer.world_size = 2
    with pytest.raises(UserError, match="must be 1 for data that stream"):
        data.setup("fit")


def test_a_dataset_without_a_length_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from ()

    with pytest.raises(UserError, match="must return Datasets that have a length"):
        source_of(Endless(), wanted=None, workers=0, said="endless")


def test_what_does_not_fit_in_memory_streams(monkeypatch):
    assert source_of(Jittered(), wanted=None, workers=0, said="a") is None
    monkeypatch.setattr(stream, "RESIDENT", 1e-12)
    assert source_of(Jittered(), wanted=None, workers=0, said="a") is not None
    assert source_of(Jittered(), wanted=False, workers=0, said="a") is None
    assert source_of(np.zeros((3, 2)), wanted=None, workers=0, said="a") is None
