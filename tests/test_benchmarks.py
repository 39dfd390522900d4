"""What the benchmarks count and compare, against PyTorch's counter and perceptrail's own split."""

from datetime import datetime

import numpy as np
import pytest
import torch
from benchmarks.loop import Loop, network
from benchmarks.search import pace
from benchmarks.speed import CHECKED, TASKS, TOLERANCE, unequal
from benchmarks.table import summary
from benchmarks.task import CLASSES, INPUTS, SEED, VALIDATION, Task, indices
from optuna.trial import create_trial
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from perceptrail.data.dataset import Dataset
from perceptrail.data.module import DataModule


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_flops_are_those_that_pytorch_counts(task):
    x, y = torch.zeros(task.batch, INPUTS), torch.zeros(task.batch, dtype=torch.int64)
    model = network(INPUTS, task.hidden, CLASSES)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    assert counter.get_total_flops() == task.flops * task.batch


def test_a_task_survives_the_way_to_another_process():
    task = Task(hidden=(7, 5), seconds=3.5)
    assert Task.loads(task.dumps()) == task


def test_the_examples_are_those_that_perceptrail_takes():
    x = np.arange(60_000, dtype=np.float32)[:, None]
    part = (x, np.zeros(60_000, np.int64))
    facts = {"name": "count", "classes": ("0", "1"), "digest": "", "source": ""}
    data = DataModule(
        Dataset(shape=(1,), train=lambda: part, test=lambda: part, **facts),
        batch_size=128,
        val_size=VALIDATION,
        train_size=1280,
        seed=SEED,
    )
    data.setup("fit")
    train, held_out = indices(1280)
    assert data.train[0].flatten().tolist() == train.tolist()
    assert data.val[0].flatten().tolist() == held_out.tolist()


def test_the_hand_written_loop_learns():
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    y = (x.sum(1) > 0).long()
    loop = Loop(x, y, hidden=(8,), classes=2, batch=32, rate=0.01)
    before = loop.accuracy(x, y)
    for _ in range(5):
        loop.epoch()
    assert loop.accuracy(x, y) > max(before, 0.95)


def test_a_contender_that_learned_something_else_is_found():
    reached = {"a": 0.95, "b": 0.951, "c": 0.949, "d": 0.95 - 1.5 * TOLERANCE}
    rows = [{"network": CHECKED.name, "contender": k, "accuracy": v} for k, v in reached.items()]
    elsewhere = {"network": "n", "contender": "a", "accuracy": 0.5}
    assert unequal([*rows, elsewhere, {"network": CHECKED.name, "contender": "a"}]) == {"d"}


def test_rounds_become_a_median_with_its_spread():
    rows = [{"who": "a", "x": x} for x in (3.0, 1.0, 2.0)]
    rows += [{"who": "b", "x": 1.0}, {"who": "b", "x": None}, {"who": "c"}, {"who": "d", "x": 4.0}]
    assert summary(rows, ("who",), {"x": ".1f"}) == [
        ["who", "x"],
        ["a", "2.0 (1.0 to 3.0)"],
        ["b", "–"],
        ["c", ""],
        ["d", "4.0"],
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pace_is_that_of_all_workers_together(workers):
    """Six seconds a trial, the first of each worker a minute."""
    ends = [60 + 6 * (i // workers) for i in range(12)]
    trials = [create_trial(value=0.0) for _ in ends]
    for trial, end in zip(trials, ends, strict=True):
        trial.datetime_complete = datetime.fromtimestamp(end)
    assert pace(trials, workers) == 6 / workers
