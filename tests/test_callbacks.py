"""What happens beside the training: seeds, rates, rows, checkpoints, divergence, progress."""

import os
import termios
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from perceptrail.callbacks import (
    Checkpoints,
    DivergenceError,
    EpochSeed,
    History,
    Progress,
    ScheduledDropout,
    StopOnDivergence,
    WeightAveraging,
)
from perceptrail.classifier import Classifier
from perceptrail.data import sets
from perceptrail.data.module import Batches, DataModule
from perceptrail.errors import UserError
from perceptrail.model import MLP
from perceptrail.schedules import DROPOUT_SCHEDULES, one_cycle

XOR = sets.xor(points=200, bits=2, noise=0.3, seed=0)
BATCH, VAL, STEPS = 32, 50, 5  # 150 examples for training: five steps an epoch

pytestmark = pytest.mark.usefixtures("one_thread")


def data_module(chunk=64):
    data = DataModule(XOR, batch_size=BATCH, val_size=VAL, seed=0, chunk=chunk)
    data.setup("fit")
    return data


def classifier(*, seed=3, dropout=0.2, norm=None, **options):
    torch.manual_seed(seed)
    network = MLP(2, 1, hidden=[8, 8], dropout=dropout, norm=norm)
    return Classifier(network, **{"optimizer": partial(SGD, lr=0.1)} | options)


def fit(module, *callbacks, epochs=3, chunk=64, ckpt_path=None, **options):
    """Train as `perceptrail.training` does, with the given callbacks."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        deterministic=True,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data_module(chunk), ckpt_path=ckpt_path)
    return trainer


class Draw(pl.Callback):
    """Draws a random number at the first step of each epoch."""

    def __init__(self):
        self.drawn = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Draw."""
        self.drawn.setdefault(trainer.current_epoch, float(torch.rand(())))


def drawn(seed, **options):
    draw = Draw()
    fit(classifier(), EpochSeed(seed), draw, **options)
    return draw.drawn


def test_random_numbers_follow_from_seed_and_epoch():
    torch.manual_seed(11)
    first = drawn(0)
    torch.manual_seed(12)
    assert drawn(0, chunk=1) == first
    assert sorted(first) == [0, 1, 2]
    assert len({*first.values(), *drawn(1).values()}) == 6


def test_every_process_draws_its_own_numbers():
    values = set()
    for rank in range(8):
        EpochSeed(0).on_train_epoch_start(SimpleNamespace(current_epoch=0, global_rank=rank), None)
        values.add(float(torch.rand(())))
    assert len(values) == 8


@pytest.mark.parametrize("name", DROPOUT_SCHEDULES)
def test_the_logged_dropout_rate_is_that_of_the_epochs_last_step(name):
    history, module = History(), classifier()
    schedule = ScheduledDropout(name, start=0.1, end=0.5, cutoff=0.4)
    fit(module, schedule, history, epochs=4)
    last = [((epoch + 1) * STEPS - 1) / (4 * STEPS) for epoch in range(4)]
    expected = [DROPOUT_SCHEDULES[name](t, 0.1, 0.5, 0.4) for t in last]
    assert [row["dropout"] for row in history.rows] == pytest.approx(expected, rel=1e-6)


def test_the_scheduled_rate_is_the_one_that_each_step_is_made_with():
    module, seen = classifier(dropout=0.7), []
    dropout = module.network.layers[-2]
    dropout.register_forward_hook(lambda layer, *_: seen.extend([layer.p] * layer.training))
    fit(module, ScheduledDropout("linear", start=0.0, end=0.5, cutoff=0.0), epochs=2, chunk=2)
    assert seen == pytest.approx([0.5 * i / 10 for i in range(10)])


def first_bad_step(make, *, seed, lr, epochs):
    """The first step, counted from 0, whose loss is not finite: by a plain loop."""
    network = make(seed=seed).network
    optimizer = SGD(network.parameters(), lr=lr)
    data, step = data_module(), 0
    for epoch in range(epochs):
        for x, y in Batches(*data.train, batch_size=BATCH, seed=0, epoch=lambda e=epoch: e):
            loss = F.binary_cross_entropy_with_logits(network(x)[:, 0], y.float())
            if not loss.isfinite():
                return step, loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    raise AssertionError("all losses are finite")


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize("lr", [3e3, 3e5, 1e12])
def test_divergence_names_the_step_the_epoch_and_what_to_try(lr, chunk):
    make = partial(classifier, dropout=0.0, optimizer=partial(SGD, lr=lr))
    step, value = first_bad_step(make, seed=3, lr=lr, epochs=20)
    with pytest.raises(DivergenceError) as caught:
        fit(make(seed=3), StopOnDivergence(), epochs=20, chunk=chunk)
    message = str(caught.value)
    assert f"became {value} at step {step} (epoch {step // STEPS + 1}, " in message
    assert f"learning rate {lr:.3g})" in message
    assert message.startswith("train/loss ")
    for cure in ("a lower optimizer.lr", "regularization.gradient_clip=1", "model.norm=batch"):
        assert cure in message
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("bad", [inf, -inf, np.nan])
@pytest.mark.parametrize("step", [0, 4, 5, 12])
def test_any_loss_that_is_not_finite_ends_the_run_within_its_chunk(bad, step):
    module, history = classifier(), History()
    whole = module.loss
    module.loss = lambda x, y: whole(x, y) * (bad if module.step == step else 1.0)
    with pytest.raises(
        DivergenceError, match=rf"became {bad} at step {step} \(epoch {step // 5 + 1},"
    ):
        fit(module, StopOnDivergence(), history, chunk=2)
    assert len(history.rows) == step // STEPS
    assert len(module.step_losses) <= step % STEPS + 2


def test_a_last_step_that_ruins_the_weights_ends_the_run_too(tmp_path):
    module = classifier(optimizer=partial(SGD, lr=1e30), dropout=0.0)
    checkpoints = Checkpoints(tmp_path, monitor="val/loss", mode="min")
    limits = {"limit_train_batches": 1, "epochs": 1, "chunk": 1}
    with pytest.raises(DivergenceError, match="val/loss"):
        fit(module, StopOnDivergence(), checkpoints, **limits)
    assert not (tmp_path / "best.ckpt").exists()


def test_finite_losses_however_large_go_on():
    module = classifier()
    whole = module.loss
    module.loss = lambda x, y: whole(x, y) * 0 + 3e38
    fit(module, StopOnDivergence())


def test_a_row_an_epoch_is_gathered_and_handed_on():
    history, received = History(), []
    history.receive = received.append
    module = classifier(optimizer=partial(AdamW, lr=0.02), schedule=partial(one_cycle, warmup=0.3))
    trainer = fit(module, history, epochs=4, chunk=2)
    assert received == history.rows
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4]
    assert [row["step"] for row in history.rows] == [5, 10, 15, 20]
    rates = [0.02 * one_cycle((step - 1) / 20) for step in (5, 10, 15, 20)]
    assert [row["lr"] for row in history.rows] == pytest.approx(rates)
    names = {"epoch", "step", "lr", "train/samples_per_second", "train/loss", "val/loss", "val/acc"}
    for row in history.rows:
        assert row.keys() == names
        assert all(type(value) in (int, float) and np.isfinite(value) for value in row.values())
        assert row["train/samples_per_second"] > 0
    last = history.rows[-1]
    assert all(last[name] == float(value) for name, value in trainer.callback_metrics.items())
    sizes = torch.tensor([32.0, 32, 32, 32, 22])
    mean = (torch.stack(module.step_losses) * sizes).sum() / 150
    assert last["train/loss"] == pytest.approx(float(mean), rel=1e-6)


def test_a_resumed_history_hands_the_stored_rows_on_again(tmp_path):
    history, checkpoints = History(), Checkpoints(tmp_path, monitor="val/loss", mode="min")
    fit(classifier(), history, checkpoints, epochs=2)
    resumed, received = History(), []
    resumed.receive = received.append
    fit(classifier(), resumed, checkpoints, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert received[:2] == history.rows
    assert received == resumed.rows
    assert [row["epoch"] for row in received] == [1, 2, 3]


def network_in(path):
    """The weights, and the epoch counted from 1, in a checkpoint."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in stored["state_dict"].items()}
    return weights, stored["epoch"] + 1


class Weights(Checkpoint):
    """Keeps the weights as they are at the end of each epoch."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, trainer, pl_module):
        """Keep them."""
        state = pl_module.network.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(v, others[k]) for k, v in some.items())


@pytest.mark.parametrize(
    ("monitor", "mode", "choose"),
    [
        ("val/loss", "min", np.argmin),
        ("val/loss", "max", np.argmax),
        ("val/acc", "max", np.argmax),
        ("train/loss", "min", np.argmin),
    ],
)
def test_best_and_last_checkpoint_hold_what_their_names_say(tmp_path, monitor, mode, choose):
    history, kept = History(), Weights()
    module = classifier(optimizer=partial(SGD, lr=5.0, momentum=0.9), norm="batch")
    fit(module, history, kept, Checkpoints(tmp_path, monitor=monitor, mode=mode), epochs=8)
    best = int(choose([row[monitor] for row in history.rows]))  # the first of equals
    weights, epoch = network_in(tmp_path / "best.ckpt")
    assert epoch == best + 1
    assert equal(weights, kept.weights[best])
    weights, epoch = network_in(tmp_path / "last.ckpt")
    assert epoch == 8
    assert equal(weights, module.network.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_first_of_equals_is_the_best(tmp_path):
    module = classifier(optimizer=partial(SGD, lr=0.0))
    fit(module, Checkpoints(tmp_path, monitor="val/loss", mode="min"))
    assert [network_in(tmp_path / f"{name}.ckpt")[1] for name in ("best", "last")] == [1, 3]


class Judge(Checkpoint):
    """Keeps the validation loss of the weights as a plain loop would compute it."""

    def __init__(self):
        self.losses = []

    def on_train_epoch_end(self, trainer, pl_module):
        """Judge them."""
        x, y = trainer.datamodule.val
        with torch.no_grad():
            logits = pl_module.network.eval()(x)[:, 0]
        pl_module.network.train()
        self.losses.append(float(F.binary_cross_entropy_with_logits(logits, y.float())))


def test_the_mean_of_the_weights_is_what_is_validated_and_kept(tmp_path):
    kept, history, horizon, epochs = Weights(), History(), 0.3, 6
    make = partial(classifier, optimizer=partial(SGD, lr=1.0), norm="batch", dropout=0.0)
    module = make()
    checkpoints = Checkpoints(tmp_path, monitor="val/loss", mode="min")
    averaging = WeightAveraging(horizon=horizon)
    fit(module, averaging, kept, history, checkpoints, epochs=epochs)
    plain, judged = make(), Judge()
    fit(plain, judged, epochs=epochs)
    assert equal(module.network.state_dict(), plain.network.state_dict())

    # One chunk an epoch. At first every weight counts alike, then the fresh ones for more.
    fresh = [max(1 / n, 1 - np.exp(-1 / (horizon * epochs))) for n in range(1, epochs + 1)]
    assert fresh[0] == 1 and fresh[-1] == fresh[-2] > 1 / epochs
    network, losses, (x, y) = make().network, [], data_module().val
    mean = dict.fromkeys(network.state_dict(), 0)
    for share, weights in zip(fresh, kept.weights, strict=True):
        mean = {name: old + share * (weights[name] - old) for name, old in mean.items()}
        network.load_state_dict(mean)
        with torch.no_grad():
            logits = network.eval()(x)[:, 0]
        losses.append(float(F.binary_cross_entropy_with_logits(logits, y.float())))
    assert [row["val/loss"] for row in history.rows] == pytest.approx(losses, rel=1e-5)
    assert losses != pytest.approx(judged.losses, rel=1e-2)
    stored, _ = network_in(tmp_path / "last.ckpt")
    assert stored.keys() == mean.keys()
    for name in [name for name, value in stored.items() if value.is_floating_point()]:
        torch.testing.assert_close(stored[name], mean[name], rtol=1e-5, atol=1e-6)


class InterruptionError(Exception):
    """Stands for whatever ends a process."""


class Interrupt(pl.Callback):
    """Ends the training at a certain moment of its third epoch."""

    def __init__(self, moment):
        self.moment = moment

    def _end(self, trainer, moment):
        if trainer.current_epoch == 2 and moment == self.moment:
            raise InterruptionError(moment)

    def on_train_epoch_start(self, trainer, pl_module):
        """Before the first step."""
        self._end(trainer, "start")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """After a chunk of steps."""
        self._end(trainer, f"chunk {batch_idx}")

    def on_validation_end(self, trainer, pl_module):
        """After the validation, and before anything is written."""
        self._end(trainer, "validation")


SETTINGS = {
    "AdamW, one cycle": {
        "optimizer": partial(AdamW, lr=0.05),
        "schedule": partial(one_cycle, warmup=0.3),
    },
    "momentum, plateau": {
        "optimizer": partial(SGD, lr=1.0, momentum=0.9),
        "schedule": partial(ReduceLROnPlateau, mode="min", factor=0.3, patience=0),
        "norm": "batch",
    },
    "averaged": {"optimizer": partial(AdamW, lr=0.05), "norm": "batch", "horizon": 0.2},
}


def train(folder, settings, *others, seed, resume=False):
    """Seven epochs with everything that a run has; the classifier and its rows."""
    options = dict(settings)
    if horizon := options.pop("horizon", None):
        others = (WeightAveraging(horizon=horizon), *others)
    history, module = History(), classifier(seed=seed, **options)
    fit(
        module,
        EpochSeed(0),
        ScheduledDropout("linear", start=0.0, end=0.4, cutoff=0.0),
        EarlyStopping("val/loss", patience=3, min_delta=0.05, check_finite=False),
        StopOnDivergence(),
        *others,
        history,
        Checkpoints(folder, monitor="val/loss", mode="min"),
        epochs=7,
        chunk=2,
        ckpt_path=folder / "last.ckpt" if resume else None,
    )
    return module, history.rows


def steady(rows):
    """The rows without the speed, which no two trainings share."""
    return [{k: v for k, v in row.items() if k != "train/samples_per_second"} for row in rows]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("moment", ["start", "chunk 0", "chunk 2", "validation", "last.ckpt"])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, settings, moment, monkeypatch):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, rows = train(tmp_path / "whole", settings, seed=3)
    assert len(rows) > 3

    replace, replaced = Path.replace, []

    def broken_replace(source, target):
        """The third epoch's last.ckpt is not written any more, though its best.ckpt may be."""
        replaced.append(Path(target).name)
        if moment == "last.ckpt" and replaced.count("last.ckpt") == 3:
            raise InterruptionError(target)
        return replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(InterruptionError):
        patch.setattr(Path, "replace", broken_replace)
        train(tmp_path / "broken", settings, Interrupt(moment), seed=3)
    assert network_in(tmp_path / "broken" / "last.ckpt")[1] == 2

    resumed, resumed_rows = train(tmp_path / "broken", settings, seed=99, resume=True)
    assert equal(resumed.network.state_dict(), whole.network.state_dict())
    assert steady(resumed_rows) == steady(rows)
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (network_in(tmp_path / run / name) for run in ("broken", "whole"))
        assert ours[1] == theirs[1]
        assert equal(ours[0], theirs[0])


def test_a_training_that_is_over_has_nothing_left_to_do(tmp_path):
    settings = SETTINGS["AdamW, one cycle"]
    whole, rows = train(tmp_path, settings, seed=3)
    again, same_rows = train(tmp_path, settings, seed=99, resume=True)
    assert equal(again.network.state_dict(), whole.network.state_dict())
    assert same_rows == rows


def test_progress_is_a_line_an_epoch_without_a_terminal(capsys):
    history = History()
    fit(classifier(), Progress(), history, chunk=2)
    out, _ = capsys.readouterr()
    assert out.splitlines() == [
        f"epoch {epoch}/3  train/loss {row['train/loss']:.4f}  "
        f"val/loss {row['val/loss']:.4f}  val/acc {row['val/acc']:.4f}"
        for epoch, row in enumerate(history.rows, 1)
    ]


def test_progress_is_one_bar_over_all_steps_on_a_terminal(tmp_path, monkeypatch, capsys):
    shown = on_a_terminal(monkeypatch, lambda: fit(classifier(), Progress(), chunk=2))
    *_, last_state, end = shown.split("\r")
    assert end == "\n"
    assert "epoch 3/3" in last_state
    assert "15/15" in last_state
    assert "val/acc" in last_state
    assert "epoch" not in capsys.readouterr().out

    checkpoints, last = (
        Checkpoints(tmp_path, monitor="val/loss", mode="min"),
        tmp_path / "last.ckpt",
    )
    fit(classifier(), checkpoints, epochs=2)
    resume = partial(fit, classifier(), Progress(), checkpoints, epochs=3, ckpt_path=last)
    first_state, *_, last_state, _ = on_a_terminal(monkeypatch, resume).strip("\r").split("\r")
    assert "10/15" in first_state
    assert "15/15" in last_state


def on_a_terminal(monkeypatch, action):
    """What an action writes to a standard error that is a terminal."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (25, 120))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        action()
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 2**16):
            shown += part
    os.close(ours)
    return shown.decode()
