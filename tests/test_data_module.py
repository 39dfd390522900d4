"""Batches and splits: every example once, orders that repeat, and real Lightning runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from perceptrail.data import idx, sets
from perceptrail.data.augment import Augment
from perceptrail.data.dataset import Dataset
from perceptrail.data.mapped import Mapped
from perceptrail.data.module import Batches, DataModule
from perceptrail.errors import UserError


def examples(n):
    """Examples that say which they are: x is [i], y is i."""
    index = torch.arange(n)
    return index[:, None].float(), index


def seen(batches):
    """The examples in the order in which they come, x and y checked to belong together."""
    pairs = list(batches)
    assert len(pairs) == len(batches)
    for x, y in pairs:
        assert torch.equal(x, y[:, None].float())
    return [int(i) for _, y in pairs for i in y]


@pytest.mark.parametrize(("n", "size"), [(100, 10), (103, 10), (7, 7), (7, 100), (5, 1)])
def test_an_epoch_holds_every_example_once(n, size):
    batches = Batches(*examples(n), batch_size=size, seed=0)
    assert sorted(seen(batches)) == list(range(n))
    sizes = [len(y) for _, y in batches]
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    assert seen(Batches(*examples(n), batch_size=size)) == list(range(n))


def test_bytes_are_given_as_numbers_or_as_stored():
    stored = torch.arange(103 * 3).remainder(256).to(torch.uint8).view(103, 3)
    batches = Batches(stored, torch.arange(103), batch_size=10, seed=0)
    given = [(x, y) for x, y in batches]
    assert all(torch.equal(x, stored[y].float() / 255) for x, y in given)
    batches.as_stored = True
    for (x, y), (_, same) in zip(batches, given, strict=True):
        assert torch.equal(y, same) and torch.equal(x, stored[y])
        assert x.dtype == torch.uint8


def test_the_order_follows_from_seed_and_epoch():
    epoch = 0
    batches = Batches(*examples(100), batch_size=8, seed=1, epoch=lambda: epoch)
    first, again = seen(batches), seen(batches)
    epoch = 1
    second = seen(batches)
    epoch = 0
    other_seed = Batches(*examples(100), batch_size=8, seed=2)
    assert first == again == seen(batches)
    assert len({tuple(first), tuple(second), tuple(seen(other_seed)), tuple(range(100))}) == 4


def test_every_order_is_as_likely():
    batches = [Batches(*examples(3), batch_size=3, seed=seed) for seed in range(6000)]
    orders, counts = np.unique([seen(b) for b in batches], axis=0, return_counts=True)
    assert len(orders) == 6
    # Binomial: 1000 each, standard deviation 29.
    assert np.abs(counts - 1000).max() < 5 * 29


@pytest.mark.parametrize(("n", "world"), [(100, 2), (101, 2), (103, 4), (3, 8)])
def test_shares_are_equal_and_cover_an_epoch(n, world):
    shares = [
        Batches(*examples(n), batch_size=8, seed=0, rank=rank, world=world) for rank in range(world)
    ]
    orders = [seen(share) for share in shares]
    assert len({len(order) for order in orders}) == 1
    assert len({len(share) for share in shares}) == 1
    counts = np.bincount(np.concatenate(orders), minlength=n)
    assert counts.min() >= 1
    assert counts.sum() == -(-n // world) * world
    assert counts.max() <= 1 + -(-world // n)
    # One order for all, dealt out in turn: with one process less or more, the same epoch.
    alone = seen(Batches(*examples(n), batch_size=8, seed=0))
    assert [i for turn in zip(*orders, strict=True) for i in turn][:n] == alone


@pytest.mark.parametrize(("n", "world"), [(100, 2), (101, 2), (103, 4), (3, 8)])
def test_unshuffled_shares_repeat_nothing(n, world):
    shares = [seen(Batches(*examples(n), batch_size=8, rank=r, world=world)) for r in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(n))
    assert all(share == sorted(share) for share in shares)


def numbered(n, classes=3, shape=(1,)):
    """A set whose examples say which they are; its test part must not be read."""

    def train():
        x = np.repeat(np.arange(n, dtype=np.float32)[:, None], np.prod(shape), axis=1)
        return x, np.arange(n)

    def test():
        raise AssertionError("the test part was read")

    return Dataset("numbered", shape, tuple(map(str, range(classes))), "0", "here", train, test)


def ready(dataset, **options):
    data = DataModule(dataset, **{"batch_size": 10, "val_size": 20, "seed": 0} | options)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("val_size", "count"), [(20, 20), (0.25, 25), (1, 1), (99, 99), (0.999, None)]
)
def test_the_split_is_a_partition_of_that_size(val_size, count):
    if count is None:
        with pytest.raises(UserError, match=r"data\.val_size=0\.999: .* 1 to 99, .* 100 examples"):
            ready(numbered(100), val_size=val_size)
        return
    data = ready(numbered(100), val_size=val_size, batch_size=1)
    assert (data.n_train, data.n_val) == (100 - count, count)
    train, val = seen(data.train_dataloader()), seen(data.val_dataloader())
    assert sorted(train + val) == list(range(100))


def test_the_split_follows_the_seed():
    one, same, other = (ready(numbered(100), seed=seed).val[1].tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_facts_come_from_the_data():
    data = ready(numbered(100, classes=2, shape=(2, 3)))
    x, _ = data.train
    assert (data.inputs, data.outputs, data.shape, data.classes) == (6, 1, (2, 3), ("0", "1"))
    assert data.mean == pytest.approx(x.double().mean().item())
    assert data.std == pytest.approx(x.double().std(correction=0).item())
    assert ready(numbered(100, classes=3)).outputs == 3


@pytest.mark.parametrize("held", [2**29, 300])  # all at once, and 3 rows at a time
def test_data_that_stay_in_their_file_are_those_in_memory(tmp_path, monkeypatch, held):
    idx.write(tmp_path / "x", np.arange(250 * 12, dtype=np.uint8).reshape(250, 12))
    x, y = idx.read(tmp_path / "x"), np.arange(250) % 2
    monkeypatch.setattr("perceptrail.data.mapped.HELD", held)
    monkeypatch.setattr("perceptrail.data.mapped.AROUND", 100)

    def module(values):
        facts = {"name": "bytes", "classes": ("0", "1"), "digest": "", "source": "", "shape": (12,)}
        found = Dataset(train=lambda: (values, y), test=lambda: (values, y), **facts)
        data = DataModule(found, batch_size=32, val_size=50, seed=0)
        data.setup("fit")
        return data

    resident = module(np.array(x))
    monkeypatch.setattr("perceptrail.data.module.MAPPED", 0)
    stays = module(x)
    assert isinstance(stays._train[0], Mapped)
    assert (stays.mean, stays.std) == (resident.mean, resident.std)
    torch.testing.assert_close(stays.val, resident.val, rtol=0, atol=0)
    pairs = zip(stays.train_dataloader(), resident.train_dataloader(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_mnist_has_its_well_known_mean_and_standard_deviation(mnist_dir):
    data = ready(sets.mnist(dir=mnist_dir), val_size=5000, batch_size=128)
    assert (data.n_train, data.n_val, data.inputs, data.outputs) == (55000, 5000, 784, 10)
    assert data.mean == pytest.approx(0.1307, abs=5e-4)
    assert data.std == pytest.approx(0.3081, abs=5e-4)
    assert data.train[0].dtype == torch.float32
    assert data.train[1].dtype == torch.int64


def test_constant_data_have_a_deviation_to_divide_by():
    nothing = Dataset(
        *("nothing", (2,), ("0", "1"), "0", "here"),
        lambda: (np.full((50, 2), 0.5, np.float32), np.zeros(50, np.int64)),
        lambda: (np.zeros((0, 2), np.float32), np.zeros(0, np.int64)),
    )
    data = ready(nothing)
    assert (data.mean, data.std) == (0.5, 1.0)


@pytest.mark.parametrize("seed", range(10))
def test_no_line_beats_three_quarters_in_either_part_of_xor(seed):
    data = ready(sets.xor(points=1000, bits=2, noise=0.1, seed=seed), val_size=0.2, seed=seed)
    for x, _ in (data.train, data.val):
        corners = np.bincount((x.numpy() > 0) @ [1, 2])
        # The corners stay apart, so that the best line gets three of them: see test_synthetic.
        assert corners.tolist() == [len(x) // 4] * 4


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("batch_size", 0, "1 to 80"),
        ("batch_size", 81, "1 to 80"),
        ("val_size", 0, "1 to 99"),
        ("val_size", 100, "1 to 99"),
        ("val_size", -0.5, "1 to 99"),
        ("val_size", 1.5, "1 to 99"),
        ("val_size", 0.001, "1 to 99"),
        ("augment", {"rotat": 10}, "did you mean 'rotate'"),
        ("augment", {"rotate": 10}, "not images"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(key, value, allowed):
    shape = (1, 1) if value == {"rotat": 10} else (1,)
    with pytest.raises(UserError, match=rf"^data\.{key}.*{allowed}"):
        ready(numbered(100, shape=shape), **{key: value})


class Watcher(pl.LightningModule):
    """Notes the batches that reach it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs, self.validated, self.inputs = {}, [], []

    def training_step(self, batch, index):
        """Note the batch; the loss is of no matter."""
        x, y = batch
        self.epochs.setdefault(self.current_epoch, []).extend(y.tolist())
        self.inputs.append(x)
        return (self.weight * x.mean()).sum()

    def validation_step(self, batch, index):
        """Note the batch."""
        self.inputs.append(batch[0])
        self.validated.extend(batch[1].tolist())

    def configure_optimizers(self):
        """One that changes nothing."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(data, tmp_path, *, epochs, ckpt_path=None):
    watcher = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(watcher, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return watcher


def module(**options):
    return DataModule(numbered(100), **{"batch_size": 8, "val_size": 20, "seed": 0} | options)


def test_lightning_trains_on_it_and_a_resumed_run_goes_on_in_the_same_order(tmp_path):
    data = module()
    data.setup("fit")  # as one does to learn the sizes before the model is made
    whole = fit(data, tmp_path, epochs=4)
    assert sorted(whole.epochs) == [0, 1, 2, 3]
    train, val = data.train[1].tolist(), data.val[1].tolist()
    assert all(sorted(order) == train for order in whole.epochs.values())
    assert len({tuple(order) for order in whole.epochs.values()}) == 4
    assert whole.validated == val * 4

    begun = fit(module(), tmp_path, epochs=2)
    rest = fit(module(), tmp_path, epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert begun.epochs | rest.epochs == whole.epochs
    assert sorted(rest.epochs) == [2, 3]


def test_batches_reach_the_model_without_a_copy(tmp_path):
    data = module(val_size=79, batch_size=21)
    watcher = fit(data, tmp_path, epochs=1)
    assert (
        watcher.inputs[-1].untyped_storage().data_ptr() == data.val[0].untyped_storage().data_ptr()
    )


def test_training_batches_alone_are_augmented(tmp_path):
    options = {"rotate": 30, "translate": 1}
    data = DataModule(
        numbered(100, shape=(8, 8)), batch_size=80, val_size=20, seed=0, augment=options
    )
    data.setup("fit")
    torch.manual_seed(0)
    watcher = fit(data, tmp_path, epochs=1)
    trained, validated = watcher.inputs
    ((x, _),) = Batches(*data.train, batch_size=80, seed=0)
    torch.manual_seed(0)
    assert torch.equal(trained, Augment((8, 8), **options)(x))
    assert torch.equal(validated, data.val[0])


DDP = """
import json, os, sys
import pytorch_lightning as pl, torch
sys.path.insert(0, sys.argv[1])
from test_data_module import Watcher, module

torch.set_num_threads(1)
watcher = Watcher()
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(watcher, datamodule=module())
with open(f"{sys.argv[2]}/{trainer.global_rank}.json", "w") as file:
    json.dump([list(watcher.epochs.values()), watcher.validated], file)
"""


@pytest.mark.slow
def test_two_processes_share_every_epoch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(DDP)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (epochs, validated), (others, validated_too) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    data = module()
    data.setup("fit")
    for mine, theirs in zip(epochs, others, strict=True):
        assert len(mine) == len(theirs) == 40
        assert sorted(mine + theirs) == data.train[1].tolist()
    assert epochs[0] != epochs[1]
    assert sorted(validated + validated_too) == sorted(data.val[1].tolist() * 2)
