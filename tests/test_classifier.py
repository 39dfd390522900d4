"""The loop over chunks against a plain PyTorch loop, to the bit, and its metrics."""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from numpy.testing import assert_allclose
from scipy.special import expit, log_softmax
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from perceptrail.build import build
from perceptrail.classifier import Classifier
from perceptrail.data import sets
from perceptrail.data.module import Batches, DataModule
from perceptrail.distillation import softened
from perceptrail.invocation import CONF
from perceptrail.model import MLP
from perceptrail.schedules import cosine, one_cycle

OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").iterdir())
BATCH, VAL, EPOCHS = 32, 50, 4  # 150 examples in 5 steps, of which the last is a smaller one

OPTIONS = {"label_smoothing": 0.1, "l1": 1e-3, "l2": 1e-2, "gradient_clip": 0.05}

DATASETS = {
    "xor": sets.xor(points=200, bits=2, noise=0.3, seed=0),
    "spirals": sets.spirals(points=200, arms=3, turns=1.0, noise=0.05, seed=0),
}


def as_bytes():
    """Spirals on a grid of 256 by 256."""
    x, y = DATASETS["spirals"].train()
    low, high = x.min(), x.max()
    return ((x - low) / (high - low) * 255).round().astype(np.uint8), y


DATASETS["bytes"] = replace(DATASETS["spirals"], train=as_bytes)

pytestmark = pytest.mark.usefixtures("one_thread")


def data_module(name, chunk=64):
    data = DataModule(DATASETS[name], batch_size=BATCH, val_size=VAL, seed=0, chunk=chunk)
    data.setup("fit")
    return data


def network_for(data, **options):
    torch.manual_seed(3)
    facts = {"mean": data.mean, "std": data.std}
    return MLP(data.inputs, data.outputs, **{"hidden": [16, 8], "dropout": 0.2} | facts | options)


def made_by(choice, *overrides):
    """What GROUP=NAME makes."""
    group = choice.partition("=")[0]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("train", [choice, *overrides])[group], key=group)


def trainer_for(epochs, **options):
    """A trainer as `perceptrail.training` makes it."""
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **{"devices": 1} | options,
    )


def fit(network, data, *, epochs=EPOCHS, callbacks=(), limit=1.0, **options):
    """Train a copy of a network; it, and the trainer."""
    classifier = Classifier(copy.deepcopy(network), **options)
    trainer = trainer_for(epochs, callbacks=list(callbacks), limit_train_batches=limit)
    torch.manual_seed(5)
    trainer.fit(classifier, data)
    return classifier.network, trainer


class Plain:
    """The loop as one would write it by hand for one task; the losses of its steps and epochs."""

    def __init__(self, network, data, *, optimizer, epochs=EPOCHS, limit=None, **options):
        self.network = copy.deepcopy(network)
        self.data, self.options = data, options
        self.optimizer = optimizer(self.network.parameters())
        self.step_losses, self.rates, self.val_losses = [], [], []
        steps = epochs * (limit or len(self.batches(0)))
        factor, plateau = options.get("factor"), options.get("plateau")
        scheduler = LambdaLR(self.optimizer, lambda i: factor(i / steps)) if factor else None
        plateau = plateau(self.optimizer) if plateau else None
        torch.manual_seed(5)
        for epoch in range(epochs):
            self.network.train()
            self.step_losses.append([])
            for x, y in list(self.batches(epoch))[:limit]:
                self.rates.append(self.optimizer.param_groups[0]["lr"])
                self.step_losses[-1].append((self.step(x, y), len(y)))
                if scheduler:
                    scheduler.step()
            self.val_losses.append(self.validate())
            if plateau:
                plateau.step(self.val_losses[-1])

    def batches(self, epoch):
        """Those of an epoch, counted from 0."""
        return Batches(*self.data.train, batch_size=BATCH, seed=0, epoch=lambda: epoch)

    def objective(self, x, y):
        """The loss of one batch, penalties included."""
        options, weights = self.options, self.network.weights
        loss = self.cross_entropy(self.network(x), y, options.get("label_smoothing", 0.0))
        if "l1" in options:
            loss = loss + options["l1"] * sum(w.abs().sum() for w in weights)
        if "l2" in options:
            loss = loss + options["l2"] / 2 * sum((w * w).sum() for w in weights)
        return loss

    def step(self, x, y):
        """Learn from one batch; its loss."""
        options, weights = self.options, self.network.weights
        loss = self.objective(x, y)
        self.optimizer.zero_grad()
        loss.backward()
        if "gradient_clip" in options:
            nn.utils.clip_grad_norm_(self.network.parameters(), options["gradient_clip"])
        self.optimizer.step()
        if "max_norm" in options:
            with torch.no_grad():
                for w in weights[:-1]:
                    norm = w.norm(dim=1, keepdim=True)
                    w.mul_((options["max_norm"] / norm).clamp(max=1))
        return loss.item()

    @staticmethod
    def cross_entropy(logits, y, smoothing):
        """PyTorch's own, for one output or many."""
        if logits.shape[1] > 1:
            return nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, y)
        target = (1 - smoothing) * y + smoothing / 2
        return nn.BCEWithLogitsLoss(reduction="none")(logits.squeeze(1), target.float()).mean()

    def validate(self):
        """The loss of the validation data."""
        self.network.eval()
        with torch.no_grad():
            x, y = self.data.val
            return self.cross_entropy(self.network(x), y, 0.0).item()

    @property
    def train_losses(self):
        """The mean over the examples of each epoch."""
        epochs = [np.array(epoch) for epoch in self.step_losses]
        return [float((e[:, 0] * e[:, 1]).sum() / e[:, 1].sum()) for e in epochs]


class Watch(pl.Callback):
    """Notes each epoch's metrics and learning rate."""

    def __init__(self):
        self.metrics, self.rates = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        """Note the rate that the epoch ended with."""
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        """Note the last epoch."""
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_train_epoch_start(self, trainer, pl_module):
        """Note the epoch before."""
        if trainer.current_epoch > 0:
            self.on_train_end(trainer, pl_module)

    def series(self, name):
        """One metric over the epochs."""
        return [epoch[name] for epoch in self.metrics]


def same(ours, theirs):
    """Whether two networks hold the same numbers, to the bit."""
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_does_what_it_does_in_a_plain_loop(name, optimizer):
    data, make = data_module(name), made_by(f"optimizer={optimizer}")
    start = network_for(data)
    ours, _ = fit(start, data, optimizer=make)
    assert same(ours, Plain(start, data, optimizer=make).network)
    assert not same(ours, start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_with_a_schedule_and_every_option(optimizer):
    data, make = data_module("spirals"), made_by(f"optimizer={optimizer}")
    start, schedule = network_for(data), made_by("schedule=one_cycle")
    ours, _ = fit(start, data, optimizer=make, schedule=schedule, **OPTIONS)
    assert same(ours, Plain(start, data, optimizer=make, factor=schedule, **OPTIONS).network)


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_chunks_of_any_size_are_the_same_steps(chunk):
    data = data_module("spirals", chunk)
    start = network_for(data, norm="batch")
    make, factor = made_by("optimizer=adamw"), made_by("schedule=one_cycle")
    ours, _ = fit(start, data, optimizer=make, schedule=factor)
    assert same(ours, Plain(start, data, optimizer=make, factor=factor).network)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("options", [*({k: v} for k, v in OPTIONS.items()), OPTIONS], ids=str)
def test_every_option_does_what_it_does_in_a_plain_loop(name, options):
    data, make, watch = data_module(name), partial(SGD, lr=0.1, momentum=0.9), Watch()
    start = network_for(data)
    ours, _ = fit(start, data, optimizer=make, callbacks=[watch], **options)
    plain = Plain(start, data, optimizer=make, **options)
    assert same(ours, plain.network)
    assert not same(ours, Plain(start, data, optimizer=make).network)
    assert watch.series("train/loss") == pytest.approx(plain.train_losses, rel=1e-6)
    assert watch.series("val/loss") == pytest.approx(plain.val_losses, rel=1e-6)


def inverted(x):
    """A transform that needs values in [0, 1]."""
    assert 0 <= x.min() <= x.max() <= 1
    return 1 - x


def test_bytes_are_augmented_as_numbers():
    class Inverted(Plain):
        def batches(self, epoch):
            return [(inverted(x), y) for x, y in super().batches(epoch)]

    pictures = replace(DATASETS["bytes"], shape=(1, 2))
    data = DataModule(
        pictures, batch_size=BATCH, val_size=VAL, seed=0, chunk=64, augment=[inverted]
    )
    data.setup("fit")
    make, start = made_by("optimizer=adamw"), network_for(data)
    ours, _ = fit(start, data, optimizer=make)
    assert same(ours, Inverted(start, data, optimizer=make).network)


SCHEDULES = {
    "one cycle": partial(one_cycle, warmup=0.3),
    "cosine": partial(cosine),
    "cosine after a warm-up": partial(cosine, warmup=0.25, final=0.1),
}


@pytest.mark.parametrize("factor", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_sets_the_rate_of_every_step(factor):
    data, make = data_module("xor"), partial(AdamW, lr=0.01)
    start, watch = network_for(data), Watch()
    ours, _ = fit(start, data, optimizer=make, schedule=factor, callbacks=[watch])
    plain = Plain(start, data, optimizer=make, factor=factor)
    assert same(ours, plain.network)
    assert watch.rates == plain.rates[4::5]
    # Step i of n has the rate of progress i/n.
    assert plain.rates == pytest.approx([0.01 * factor(i / 20) for i in range(20)], abs=1e-15)


def test_every_group_of_parameters_has_its_own_rate():
    def make(parameters):
        first, *rest = parameters
        return SGD([{"params": [first], "lr": 0.5}, {"params": rest}], lr=0.1)

    data = data_module("xor")
    _, trainer = fit(network_for(data), data, optimizer=make, schedule=partial(cosine), epochs=2)
    last = cosine(9 / 10)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.5 * last, 0.1 * last])


def test_the_plateau_schedule_steps_once_an_epoch_with_the_monitored_metric():
    data, make = data_module("xor"), partial(SGD, lr=3.0, momentum=0.9)
    plateau = made_by("schedule=plateau", "schedule.patience=0")
    start, watch = network_for(data), Watch()
    ours, _ = fit(start, data, optimizer=make, schedule=plateau, callbacks=[watch], epochs=10)
    plain = Plain(start, data, optimizer=make, plateau=plateau, epochs=10)
    assert same(ours, plain.network)
    assert len(set(plain.rates)) > 2
    assert watch.series("val/loss") == pytest.approx(plain.val_losses, rel=1e-6)


@pytest.mark.parametrize(
    ("monitor", "mode"), [("val/loss", "min"), ("val/acc", "max"), ("train/loss", "min")]
)
def test_the_plateau_schedule_goes_by_any_monitored_metric(monitor, mode):
    data, watch = data_module("xor"), Watch()
    plateau = partial(ReduceLROnPlateau, mode=mode, factor=0.5, patience=0)
    fit(
        network_for(data),
        data,
        optimizer=partial(SGD, lr=3.0, momentum=0.9),
        schedule=plateau,
        monitor=monitor,
        callbacks=[watch],
        epochs=10,
    )
    replay = SGD([torch.zeros(1)], lr=3.0)
    scheduler, rates = plateau(replay), []
    for value in watch.series(monitor):
        replay.step()
        scheduler.step(value)
        rates.append(replay.param_groups[0]["lr"])
    assert watch.rates[1:] == rates[:-1]
    assert rates[-1] < 3.0


def longest(weight):
    return float(weight.detach().norm(dim=1).max())


@pytest.mark.parametrize("name", DATASETS)
def test_max_norm_bounds_the_incoming_weights_of_every_hidden_unit(name):
    data, make, length = data_module(name), partial(SGD, lr=0.1, momentum=0.9), 0.8
    start = network_for(data)
    ours, _ = fit(start, data, optimizer=make, max_norm=length)
    theirs = Plain(start, data, optimizer=make, max_norm=length).network
    free = Plain(start, data, optimizer=make).network
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
    for mine, unbound in zip(ours.weights[:-1], free.weights[:-1], strict=True):
        assert longest(mine) <= length * (1 + 1e-6)
        assert longest(unbound) > length
    assert longest(ours.weights[-1]) > length  # the outputs are not hidden


def test_max_norm_bounds_the_outputs_of_a_perceptron():
    data = data_module("spirals")
    start = network_for(data, hidden=[])
    ours, _ = fit(start, data, optimizer=partial(SGD, lr=1.0), max_norm=0.1)
    norms = ours.weights[0].norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1), rtol=1e-4, atol=0)


def test_l2_is_weight_decay_of_the_weights_alone():
    def decaying(parameters):
        every = list(parameters)
        weights, rest = [p for p in every if p.ndim == 2], [p for p in every if p.ndim == 1]
        return SGD([{"params": weights, "weight_decay": 0.01}, {"params": rest}], lr=0.1)

    data = data_module("xor")
    start = network_for(data, norm="layer")
    ours, _ = fit(start, data, optimizer=partial(SGD, lr=0.1), l2=0.01)
    theirs = Plain(start, data, optimizer=decaying).network
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_l1_pulls_every_weight_towards_zero_by_as_much():
    data = data_module("xor")
    start = network_for(data)
    x, y = data.train
    gradients = []
    for l1 in (0.0, 0.01):
        classifier = Classifier(copy.deepcopy(start).eval(), optimizer=SGD, l1=l1)
        classifier.loss(x, y).backward()
        gradients.append([p.grad for p in classifier.network.parameters()])
    for parameter, without, having in zip(start.parameters(), *gradients, strict=True):
        pull = 0.01 * parameter.sign() if parameter.ndim == 2 else torch.zeros_like(parameter)
        torch.testing.assert_close(having - without, pull, rtol=1e-4, atol=1e-6)


class Hostile(Plain):
    """Adversarial training, with the gradient of both halves of the loss taken at once."""

    def objective(self, x, y):
        """Half the loss of a batch, and half that of it shifted by 0.2 standard deviations."""
        x = x.clone().requires_grad_()
        friendly = self.cross_entropy(self.network(x), y, 0.0)
        (slope,) = torch.autograd.grad(friendly, x, retain_graph=True)
        shift = slope / slope.square().mean(1, keepdim=True).sqrt() * 0.2 * self.network.std
        return (friendly + self.cross_entropy(self.network((x + shift).detach()), y, 0.0)) / 2


@pytest.mark.parametrize("name", DATASETS)
def test_adversarial_training_learns_as_much_from_inputs_shifted_against_their_labels(name):
    data, watch, make = data_module(name), Watch(), partial(SGD, lr=0.1, momentum=0.9)
    start = network_for(data, norm="batch")
    ours, _ = fit(start, data, optimizer=make, adversarial=0.2, callbacks=[watch])
    plain = Hostile(start, data, optimizer=make)
    for mine, theirs in zip(ours.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert watch.series("train/loss") == pytest.approx(plain.train_losses, rel=1e-4)
    assert watch.series("val/loss") == pytest.approx(plain.val_losses, rel=1e-4)
    assert watch.series("val/loss") != pytest.approx(
        Plain(start, data, optimizer=make).val_losses, rel=1e-3
    )


class Pupil(Plain):
    """Cross-entropy against labels and against a teacher's probabilities, as a sum of the two."""

    def objective(self, x, y):
        """The loss of one batch."""
        teacher, weight = self.options["teacher"], self.options["weight"]
        with torch.no_grad():
            told = teacher(x)
        logits = self.network(x)
        if logits.shape[1] > 1:
            by_teacher = nn.CrossEntropyLoss()(logits, told.softmax(1))
        else:
            p, z = told.sigmoid(), logits
            by_teacher = -(p * z.sigmoid().log() + (1 - p) * (-z).sigmoid().log()).mean()
        return (1 - weight) * self.cross_entropy(logits, y, 0.0) + weight * by_teacher


@pytest.mark.parametrize("name", DATASETS)
def test_a_network_learns_what_a_teacher_predicts(name):
    data, watch, make = data_module(name), Watch(), partial(SGD, lr=0.1, momentum=0.9)
    start, teacher = network_for(data, norm="batch"), network_for(data, hidden=[5]).eval()
    relabel = partial(softened, teacher=teacher, weight=0.3)
    ours, _ = fit(start, data, optimizer=make, relabel=relabel, callbacks=[watch])
    plain = Pupil(start, data, optimizer=make, teacher=teacher, weight=0.3)
    for mine, theirs in zip(ours.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert watch.series("train/loss") == pytest.approx(plain.train_losses, rel=1e-4)


@pytest.mark.parametrize("name", DATASETS)
def test_validation_metrics_are_those_of_all_validation_examples(name):
    data, watch = data_module(name), Watch()
    ours, trainer = fit(
        network_for(data, norm="batch"),
        data,
        optimizer=partial(AdamW, lr=0.02),
        label_smoothing=0.2,  # for training alone
        l2=0.1,
        callbacks=[watch],
    )
    x, y = (part.numpy() for part in data.val)
    z = ours.eval()(torch.from_numpy(x)).detach().double().numpy()
    if data.outputs == 1:
        p = expit(z[:, 0])
        loss, right = -np.log(np.where(y == 1, p, 1 - p)), (p > 0.5) == y
    else:
        loss, right = -log_softmax(z, axis=1)[np.arange(len(y)), y], z.argmax(1) == y
    metrics = trainer.callback_metrics
    assert_allclose(float(metrics["val/loss"]), loss.mean(), rtol=1e-5)
    assert float(metrics["val/acc"]) == pytest.approx(right.mean(), abs=1e-7)
    assert 0 < right.mean() < 1


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limited_epoch_ends_after_so_many_steps_and_the_schedule_knows(limit):
    data = data_module("xor", chunk=1)
    start, make = network_for(data), partial(AdamW, lr=0.01)
    factor = partial(cosine, warmup=0.5)
    ours, _ = fit(start, data, optimizer=make, schedule=factor, limit=limit)
    assert same(ours, Plain(start, data, optimizer=make, factor=factor, limit=limit).network)


def test_steps_and_samples_are_counted():
    seen = []

    class Count(pl.Callback):
        """Notes the counts at each chunk's end."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            """Note them."""
            seen.append((pl_module.step, pl_module.epoch_samples, pl_module.steps))

    data = data_module("xor", chunk=2)
    fit(network_for(data), data, optimizer=partial(SGD, lr=0.1), callbacks=[Count()], epochs=2)
    ends = [(2, 64), (4, 128), (5, 150), (7, 64), (9, 128), (10, 150)]
    assert seen == [(step, samples, 10) for step, samples in ends]


def test_progress_before_each_step_runs_from_zero_to_just_below_one():
    data, seen = data_module("xor"), []
    classifier = Classifier(network_for(data), optimizer=partial(SGD, lr=0.1))
    classifier.before_step.append(seen.append)
    trainer_for(2).fit(classifier, data)
    assert seen == [i / 10 for i in range(10)]


TWO = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from test_classifier import *

torch.set_num_threads(1)
data = data_module("xor", chunk=1)
classifier = Classifier(network_for(data, dropout=0.0), optimizer=partial(SGD, lr=0.3))
trainer = trainer_for(2, devices=2, strategy="ddp")
trainer.fit(classifier, data)
torch.save(classifier.network.state_dict(), f"{sys.argv[2]}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_batches_of_both(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = data_module("xor")
    network = network_for(data, dropout=0.0)
    optimizer = SGD(network.parameters(), lr=0.3)
    for epoch in range(2):
        shares = [
            Batches(*data.train, batch_size=BATCH, seed=0, epoch=lambda e=epoch: e, rank=r, world=2)
            for r in range(2)
        ]
        for (x0, y0), (x1, y1) in zip(*shares, strict=True):
            optimizer.zero_grad()
            x, y = torch.cat([x0, x1]), torch.cat([y0, y1])
            Plain.cross_entropy(network(x), y, 0.0).backward()
            optimizer.step()
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in network.state_dict().items():
        assert torch.equal(one[name], other[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)


LONG = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from test_classifier import *
from perceptrail.data.dataset import Dataset

class Memory(pl.Callback):
    def on_train_batch_end(self, *_):
        lines = Path("/proc/self/status").read_text().splitlines()
        held.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

x, y = np.zeros((150_000, 784), np.uint8), np.arange(150_000) % 10
part = lambda: (x, y)
digits = Dataset("", (28, 28), tuple("0123456789"), "", "", part, part)
data = DataModule(digits, batch_size=1024, val_size=100, seed=0, chunk=16)
data.setup("fit")
held = []
torch.set_num_threads(1)
adam = partial(AdamW, fused=True)
fit(network_for(data, hidden=[128]), data, optimizer=adam, callbacks=[Memory()], epochs=1)
print(held[-1] - held[len(held) // 4])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="by what Linux says of a process")
def test_a_step_takes_the_memory_that_the_last_one_has_freed(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(LONG)
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) < 8 * 1024  # KiB, in 110 steps
