"""What of Lightning's Trainer works, what is refused; keys of one's own in a run's records."""

import csv
import inspect
import json
import os
import platform
import re
import subprocess
import sys
from functools import partial
from textwrap import dedent

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from mlflow.tracking import MlflowClient
from omegaconf import OmegaConf
from running import ROOT, Command, run
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from perceptrail.classifier import Classifier
from perceptrail.config import REFUSED, RULES, validate
from perceptrail.data import sets
from perceptrail.data.module import DataModule
from perceptrail.errors import UserError
from perceptrail.invocation import CONF
from perceptrail.losses import mean_loss
from perceptrail.model import MLP
from perceptrail.network import load
from perceptrail.rates import Range
from perceptrail.trainer import blaming, check_callback, chunk, make_trainer, stepping

TRAINER = OmegaConf.create({"devices": 1})


def the_run(folder):
    """The only run directory below a folder, and its MLflow run."""
    (record,) = folder.glob("outputs/*/*/run.json")
    return MlflowClient(f"sqlite:///{folder}/mlflow.db").get_run(
        json.loads(record.read_text())["run_id"]
    )


def test_a_key_of_ones_own_is_recorded(tmp_path):
    own = ("+notes='a first try'", "+lab.author=me", "+sed=7")
    run("train.py", "experiment=xor", "trainer.max_epochs=1", "figures=false", *own, cwd=tmp_path)
    params = the_run(tmp_path).data.params
    assert {params["notes"], params["lab.author"], params["sed"]} == {"a first try", "me", "7"}


@pytest.mark.parametrize("wanted", [True, False, "warn"])
def test_numbers_are_the_same_again_as_lightning_sees_to_it(tmp_path, monkeypatch, wanted):
    cublas = "CUBLAS_WORKSPACE_CONFIG"

    def state():
        mode = torch.get_deterministic_debug_mode()
        return mode, os.environ[cublas], torch.backends.cudnn.benchmark

    for name in (cublas, "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
    before = torch.get_deterministic_debug_mode()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["trainer=cpu", f"trainer.deterministic={wanted}"])
    try:
        make_trainer(cfg, tmp_path, [])
        ours = state()
        torch.set_deterministic_debug_mode(before)
        os.environ[cublas] = ""
        pl.Trainer(accelerator="cpu", deterministic=wanted, logger=False)
        assert ours == state()
        assert ours[0] == {True: 2, False: 0, "warn": 1}[wanted]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_deterministic_debug_mode(before)


@pytest.mark.parametrize("typo", ["sed=7", "trainer.max_epoch=3", "notes=1", "optimiser.lr=1"])
def test_a_key_without_a_plus_must_be_there(tmp_path, typo):
    command = Command("train.py", "experiment=xor", typo, cwd=tmp_path).wait()
    assert command.code == 1
    assert f"{typo.partition('=')[0]}: there is no such key" in command.output
    assert "Traceback" not in command.output


def small(*overrides, cwd):
    """A run on XOR: its output, its rows, its directory."""
    given = ("experiment=xor", "figures=false", "tracking=none", "model.dropout=0", *overrides)
    said = run("train.py", *given, cwd=cwd).output
    folder = max(cwd.glob("outputs/*/*/history.csv"), key=lambda p: p.stat().st_mtime).parent
    with (folder / "history.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return said, rows, folder


def test_the_table_names_every_argument_of_the_trainer():
    lines = (ROOT / "docs" / "trainer.md").read_text().splitlines()
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", "\n".join(lines), re.M))
    arguments = [
        name for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"
    ]
    assert list(told) == arguments
    refused = {name for name, words in told.items() if words.startswith("refused")}
    nothing = OmegaConf.create({"trainer": {}})
    for name in arguments:
        cfg = OmegaConf.merge(nothing, {"trainer": {name: "x-y"}})
        rule = RULES.get(f"trainer.{name}")
        left_out = rule is not None and "left out" in rule.allowed
        assert left_out == (name in refused), name
        if left_out:
            with pytest.raises(UserError, match=f"trainer.{name}=x-y: must be left out"):
                validate(cfg)


def data_module(chunk, batch_size, **options):
    data = DataModule(
        sets.xor(points=160, bits=2, noise=0.3, seed=0),
        batch_size=batch_size,
        val_size=32,
        seed=0,
        chunk=chunk,
        **options,
    )
    data.setup("fit")
    return data


def trained(data, *, epochs=3, callbacks=(), trainer=None, **options):
    """A network after a training, and its trainer."""
    torch.manual_seed(0)
    network = MLP(data.inputs, data.outputs, hidden=[8], mean=data.mean, std=data.std)
    given = {"optimizer": partial(torch.optim.SGD, lr=0.3, momentum=0.9)}
    classifier = Classifier(network, **(given | options))
    facts = {"max_epochs": epochs, "logger": False, "enable_progress_bar": False, "devices": 1}
    facts |= {"enable_model_summary": False, "enable_checkpointing": False}
    facts |= {"accelerator": "cpu", "num_sanity_val_steps": 0}
    made = pl.Trainer(**(facts | (trainer or {})), callbacks=list(callbacks))
    made.fit(classifier, data)
    return classifier, made


def assert_same(one, other, **tolerance):
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("watched", [False, True])
def test_accumulated_batches_are_one_large_batch(watched):
    few, _ = trained(data_module(64, 32))
    many, trainer = trained(data_module(64, 8), accumulate=4, watched=watched)
    assert_same(few, many, rtol=1e-4, atol=1e-6)
    assert trainer.global_step == 3 * 4


@pytest.mark.parametrize(("by", "clip"), [("norm", clip_grad_norm_), ("value", clip_grad_value_)])
def test_the_gradient_is_clipped_as_pytorch_does(by, clip):
    data = data_module(64, 128)
    one, _ = trained(data, epochs=1, gradient_clip=0.05, clip_by=by)
    torch.manual_seed(0)
    plain = MLP(data.inputs, data.outputs, hidden=[8], mean=data.mean, std=data.std)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.3, momentum=0.9)
    ((x, y),) = data_module(None, 128).train_dataloader()
    mean_loss(plain(x), y).backward()
    clip(plain.parameters(), 0.05)
    optimizer.step()
    torch.testing.assert_close(list(one.network.parameters()), list(plain.parameters()))


def test_lightnings_optimizer_makes_the_same_steps_and_tells_the_callbacks():
    seen = []

    class Watcher(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(trainer.global_step)

    alone, _ = trained(data_module(64, 32))
    chunked = {"callbacks": [Watcher()]}
    watched, _ = trained(data_module(chunk(TRAINER, **chunked), 32), **chunked, watched=True)
    assert_same(alone, watched)
    assert seen == list(range(12))
    assert stepping(TRAINER, [Watcher()]) == {"accumulate": 1, "watched": True}
    assert not stepping(TRAINER, [pl.callbacks.Timer()])["watched"]


def test_how_many_batches_are_handed_over():
    class PerBatch(pl.Callback):
        def on_train_batch_end(self, *args):
            """Look."""

    assert chunk(TRAINER) == chunk(TRAINER, [pl.callbacks.EarlyStopping("val/loss")]) == 64
    assert chunk(TRAINER, [PerBatch()]) == 1
    assert chunk(OmegaConf.merge(TRAINER, {"fast_dev_run": True})) == 1


@pytest.mark.parametrize(("limit", "steps"), [(1, 1), (3, 3), (0.5, 2), (1.0, 4), (9, 4), (0.1, 1)])
def test_an_epoch_may_be_limited_and_is_chunked_as_ever(limit, steps):
    data = data_module(64, 32, limit=limit)
    kept = [x for part in data.train_dataloader() for x, _ in part]
    whole = [x for part in data_module(64, 32).train_dataloader() for x, _ in part]
    torch.testing.assert_close(kept, whole[:steps])
    _, trainer = trained(data, epochs=2)
    assert trainer.global_step == 2 * steps


def test_overfitting_sees_the_same_batches_in_every_epoch():
    seen = []

    class Batches(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch[0])

    trained(data_module(1, 32, limit=2, repeat=True), epochs=3, callbacks=[Batches()])
    assert len(seen) == 6
    for x in seen[2:4], seen[4:]:
        torch.testing.assert_close(x, seen[:2])


def test_max_steps_ends_in_the_middle_of_an_epoch_with_a_validation():
    classifier, trainer = trained(data_module(64, 32), epochs=9, trainer={"max_steps": 6})
    assert trainer.global_step == classifier.steps == 6
    assert trainer.current_epoch == 2
    assert "val/loss" in trainer.callback_metrics
    assert "train/loss" in trainer.callback_metrics


class Plain(pl.LightningModule):
    """The same training, as Lightning makes it by itself."""

    def __init__(self, network, optimizer):
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return mean_loss(self.network(x), y)

    def validation_step(self, batch, batch_idx):
        """Nothing that a callback of the training is told."""

    def configure_optimizers(self):
        return self.optimizer(self.network.parameters())


class Trace(pl.Callback):
    """What a callback is told, in order; gradients are those of whole steps."""

    def __init__(self):
        self.told = []

    def _note(self, hook, *values):
        self.told.append((hook, *(float(v) for v in values)))

    def _gradients(self, pl_module):
        return [p.grad.norm() for p in pl_module.network.parameters()]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        x, y = batch
        self._note("start", batch_idx, x.sum(), y.sum(), trainer.global_step)

    def on_before_backward(self, trainer, pl_module, loss):
        self._note("before backward")

    def on_after_backward(self, trainer, pl_module):
        self._note("after backward")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rate = optimizer.param_groups[0]["lr"]
        self._note("step", trainer.global_step, rate, *self._gradients(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._note("end", batch_idx, len(batch[1]), outputs["loss"], trainer.global_step)


class BatchTrace(pl.Callback):
    """The same of batches alone, whose steps Lightning need not make."""

    def __init__(self):
        self.told = []

    on_train_batch_start, on_train_batch_end = Trace.on_train_batch_start, Trace.on_train_batch_end
    _note = Trace._note


@pytest.mark.parametrize("kind", [Trace, BatchTrace])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("clip", [{}, {"norm": 0.05}, {"value": 0.01}], ids=str)
@pytest.mark.parametrize("limit", [{}, {"max_steps": 3}, {"limit_train_batches": 4}], ids=str)
def test_callbacks_and_weights_are_as_with_lightning_alone(kind, accumulate, clip, limit):
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    trainer = OmegaConf.create({"devices": 1, "accumulate_grad_batches": accumulate, **limit})
    for name, bound in clip.items():
        trainer.update(gradient_clip_val=bound, gradient_clip_algorithm=name)
    one, trace = limit.get("limit_train_batches"), kind()
    data = data_module(chunk(trainer, [trace]), 16, limit=one)
    given = {"optimizer": optimizer, **stepping(trainer, [trace])}
    steps = {"max_steps": limit.get("max_steps", -1)}
    ours, _ = trained(data, callbacks=[trace], trainer=steps, **given)

    torch.manual_seed(0)
    network = MLP(data.inputs, data.outputs, hidden=[8], mean=data.mean, std=data.std)
    plain, expected = Plain(network, optimizer), kind()
    facts = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "devices": 1}
    facts |= {"enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    options = {k: v for k, v in trainer.items() if k != "devices"}
    facts |= {"limit_val_batches": 0}
    pl.Trainer(**facts, **options, callbacks=[expected]).fit(plain, data_module(None, 16))
    assert [told[0] for told in trace.told] == [told[0] for told in expected.told]
    for told, other in zip(trace.told, expected.told, strict=True):
        assert told[1:] == pytest.approx(other[1:], rel=1e-4, abs=1e-6), told[0]
    assert_same(ours, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_that_would_do_nothing_is_refused(name):
    said = f"must be left out: {REFUSED[name]}"
    kind = getattr(pl.callbacks, name)
    mine = type("Mine", (kind,), {})
    for callback in (kind, mine):
        with pytest.raises(UserError, match=re.escape(f"callbacks.mine: {said}")):
            check_callback("mine", callback.__new__(callback))
    target = f"pytorch_lightning.callbacks.{name}"
    named = {"callbacks": {"mine": {"_target_": target}}}
    cfg = OmegaConf.create({"task": {"name": "classification"}, "monitor": {"metric": "val/loss"}})
    with pytest.raises(UserError, match=re.escape(f"callbacks.mine._target_={target}: {said}")):
        validate(OmegaConf.merge(cfg, named))


def test_a_hook_that_is_never_called_is_refused():
    class Zero(pl.Callback):
        def on_before_zero_grad(self, *args):
            """Look."""

    with pytest.raises(UserError, match="its on_before_zero_grad would never be"):
        check_callback("mine", Zero())


def test_the_callback_that_raises_is_named():
    class Bad(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise KeyError("nothing")

    bad = Bad()
    with (
        pytest.raises(UserError, match="mine: KeyError: 'nothing'"),
        blaming({"mine": bad}),
    ):
        trained(data_module(64, 32), callbacks=[pl.callbacks.Timer(), bad])
    with pytest.raises(ZeroDivisionError), blaming({"mine": bad}):
        raise ZeroDivisionError


@pytest.mark.slow
def test_the_trainers_arguments_in_a_run(tmp_path):
    _, rows, _ = small("+trainer.max_steps=30", cwd=tmp_path)
    assert rows[-1]["step"] == 30
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    said, rows, _ = small("+trainer.fast_dev_run=true", cwd=tmp_path)
    assert [row["step"] for row in rows] == [1], said
    given = ["+trainer.profiler=simple", "trainer.max_epochs=2", "+trainer.detect_anomaly=true"]
    said, rows, _ = small(*given, "+trainer.limit_train_batches=2", cwd=tmp_path)
    assert [row["step"] for row in rows] == [2, 4]
    assert "run_training_epoch" in said


@pytest.mark.slow
def test_loggers_beside_mlflow(tmp_path):
    _, rows, folder = small("logger=csv", "trainer.max_epochs=3", cwd=tmp_path)
    with (folder / "csv" / "metrics.csv").open() as file:
        logged = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert logged == pytest.approx([row["val/loss"] for row in rows])
    assert "trainer.max_epochs: '3'" in (folder / "csv" / "hparams.yaml").read_text()


@pytest.mark.slow
def test_a_pruned_network_is_sparse(tmp_path):
    prune = "+callbacks.prune._target_=pytorch_lightning.callbacks.ModelPruning"
    given = (prune, "+callbacks.prune.pruning_fn=l1_unstructured", "+callbacks.prune.amount=0.5")
    _, _, folder = small(*given, "trainer.max_epochs=2", "monitor.metric=train/loss", cwd=tmp_path)
    network, _ = load(folder / "model")
    weights = torch.cat([p.flatten() for p in network.parameters()])
    assert (weights == 0).float().mean() > 0.4


@pytest.mark.slow
def test_a_callback_that_raises_ends_the_run_as_failed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pytorch_lightning as pl\n"
        "class Bad(pl.Callback):\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n"
        "        raise LookupError('not here')\n"
    )
    bad = ("experiment=xor", "figures=false", "+callbacks.bad._target_=mine.Bad")
    command = Command("train.py", *bad, cwd=tmp_path).wait()
    assert command.code == 1
    assert command.output.strip().splitlines()[-1] == "callbacks.bad: LookupError: not here"
    assert "Traceback" not in command.output
    assert the_run(tmp_path).info.status == "FAILED"


def test_the_suggested_rate_is_where_the_loss_falls_fastest():
    rates = np.logspace(-6, 1, 300)
    losses = 1 - 1 / (1 + np.exp(-3 * (np.log(rates) - np.log(1e-3))))  # steepest at 1e-3
    assert Range(rates, losses).suggestion == pytest.approx(1e-3, rel=0.06)


@pytest.mark.slow
def test_lr_find_draws_and_suggests_a_rate_that_trains(tmp_path):
    said = run("lr_find.py", "data=digits", "optimizer=sgd", cwd=tmp_path).output
    rate = float(re.search(r"optimizer\.lr=(\S+)", said)[1])
    assert 1e-3 < rate < 10
    (picture,) = tmp_path.glob("outputs/*/*/lr_find.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    given = ("data=digits", "optimizer=sgd", f"optimizer.lr={rate}", "trainer.max_epochs=5")
    run("train.py", *given, "tracking=none", "figures=false", cwd=tmp_path)
    (record,) = tmp_path.glob("outputs/*/*/metrics.json")
    assert json.loads(record.read_text())["val/acc"] > 0.8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library keeps the memory")
def test_memory_is_taken_again_without_the_system():
    code = """
        import resource, torch, perceptrail.trainer

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            [torch.ones(2**18) for _ in range(120)]
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(faults(), faults())
    """
    command = [sys.executable, "-c", dedent(code)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = map(int, told.split())
    assert first > 20_000 and second < 1_000  # pages; the tensors have 30,720


def test_dead_units_leave_no_tiny_numbers_behind(tmp_path):
    """With a rate so high that units die, whose means then shrink by a tenth each step; in a layer
    that two threads share.
    """
    given = ("model.hidden=[512,512]", "optimizer.lr=0.3", "trainer.max_epochs=50")
    alike = ("experiment=xor", "callbacks.early_stopping=null", "tracking=none", "figures=false")
    run("train.py", *alike, *given, cwd=tmp_path)
    (last,) = tmp_path.glob("outputs/*/*/last.ckpt")
    states = torch.load(last, weights_only=False)["optimizer_states"][0]["state"].values()
    means = torch.cat([state["exp_avg"].flatten() for state in states]).abs()
    assert (means == 0).sum() > 10_000, "units have died"
    assert means[means > 0].min() >= torch.finfo(torch.float32).tiny
