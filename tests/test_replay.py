"""Steps that are recorded against steps made one by one: the same to the bit.

On a machine without a GPU nothing is recorded; that inputs, rates and random numbers come through
the tensors that a recording reads is the same there.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from launching import launch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode

from perceptrail.callbacks import EpochSeed, ScheduledDropout
from perceptrail.classifier import Classifier
from perceptrail.data import sets
from perceptrail.data.module import DataModule
from perceptrail.fused import member
from perceptrail.model import MLP, Dropout
from perceptrail.replay import EAGER, Replay, obstacle

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
EPOCHS = 5  # the smaller batch that ends each is recorded, too

DATA = sets.spirals(points=200, arms=3, turns=1.0, noise=0.05, seed=0)

pytestmark = pytest.mark.usefixtures("one_thread")


def rounded(t: float, warmup: float = 0.3) -> float:
    """Up and down, in steps that float32 holds, as the tensor of the rates does."""
    return float(np.float32(t / warmup if t < warmup else (1 - t) / (1 - warmup)))


def fit(
    device: str, *, graphs: bool, network: MLP | None = None, **options: Any
) -> tuple[MLP, list[float], pl.Trainer]:
    """Train a network on spirals; it, and the losses of all steps."""
    data = DataModule(DATA, batch_size=32, val_size=50, seed=0, chunk=4)
    data.setup("fit")
    torch.manual_seed(3)
    network = copy.deepcopy(network) or MLP(data.inputs, data.outputs, hidden=[16, 8], dropout=0.2)
    dropout = options.pop("dropout", {"schedule": "constant", "start": 0.0, "end": 0.2})
    more = options.pop("trainer", {})
    options = {"optimizer": OPTIMIZERS["adamw"], "schedule": partial(rounded)} | options
    classifier = Classifier(network, graphs=graphs, **options)
    losses: list[float] = []

    class Twin(pl.Callback):
        """Has the steps replayed on a processor as well, and notes the losses."""

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if device == "cpu" and graphs and not isinstance(classifier._advance, Replay):
                optimizer = trainer.optimizers[0]
                classifier._advance = Replay(
                    classifier._make_step, optimizer, device=classifier.device
                )

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            losses.extend(map(float, classifier.step_losses))

    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_epochs=EPOCHS,
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[EpochSeed(0), ScheduledDropout(**dropout, cutoff=0.5), Twin()],
        **more,
    )
    trainer.fit(classifier, data)
    assert isinstance(classifier._advance, Replay) == graphs
    if graphs:
        assert len(classifier._advance._recorded) == 2, "one of each size"
    return network.cpu(), losses, trainer


OPTIMIZERS = {
    "adamw": partial(AdamW, lr=2**-6, fused=True),
    "adam": partial(Adam, lr=2**-6, fused=True),
    "rmsprop": partial(RMSprop, lr=2**-8, momentum=0.5),
    "momentum": partial(SGD, lr=2**-5, momentum=0.9, nesterov=True, fused=True),
}
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": made} for name, made in OPTIMIZERS.items()},
    "penalties and bounds": {
        "label_smoothing": 0.1,
        "l1": 1e-3,
        "l2": 1e-2,
        "gradient_clip": 0.05,
        "max_norm": 0.5,
    },
    "adversarial": {"adversarial": 0.1},
    "batch norm": {"network": MLP(2, 3, hidden=[16, 8], norm="batch", noise=0.1, dropout=0.3)},
    "layer norm": {"network": MLP(2, 3, hidden=[16], norm="layer", input_dropout=0.1)},
}


def assert_same(plain: tuple[MLP, list[float]], replayed: tuple[MLP, list[float]]) -> None:
    assert plain[1] == replayed[1]
    for (name, a), b in zip(
        plain[0].state_dict().items(), replayed[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_same_losses_and_weights(
    change: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *replayed, trainer = fit(device, graphs=True, **CHANGES[change])
    assert isinstance(trainer.optimizers[0].param_groups[0]["lr"], float)
    if device == "cpu":
        *plain, _ = fit(device, graphs=False, **CHANGES[change])
    else:  # the tensors and all, but no recording
        monkeypatch.setattr(Replay, "_record", lambda own, places: partial(as_it_is, own, places))
        *plain, _ = fit(device, graphs=True, **CHANGES[change])
    assert_same(plain, replayed)


def as_it_is(replay: Replay, places: tuple[Tensor, ...]) -> Tensor:
    with replay._aside(), replay._held():
        return replay._step(*places)


@needs_gpu
@pytest.mark.parametrize("schedule", ["linear", "early"])
def test_a_moving_dropout_rate_on_a_gpu(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dropout = {"schedule": schedule, "start": 0.0, "end": 0.5}
    *replayed, _ = fit("cuda", graphs=True, dropout=dropout)
    monkeypatch.setattr(Replay, "_record", lambda own, places: partial(as_it_is, own, places))
    *plain, _ = fit("cuda", graphs=True, dropout=dropout)
    assert_same(plain, replayed)


@needs_gpu
def test_bfloat16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = {"trainer": {"precision": "bf16-mixed"}}
    *replayed, _ = fit("cuda", graphs=True, **precision)
    monkeypatch.setattr(Replay, "_record", lambda own, places: partial(as_it_is, own, places))
    *plain, _ = fit("cuda", graphs=True, **precision)
    assert_same(plain, replayed)


def test_a_held_dropout_rate_drops_that_share_and_scales_up_the_rest() -> None:
    network = MLP(4, 2, hidden=[8], dropout=0.1)
    network.hold_dropout(torch.device("cpu"))
    network.set_dropout(0.25)
    (layer,) = (f for f in list(network.layers)[1:] if isinstance(f, Dropout))
    torch.manual_seed(0)
    y = layer(torch.ones(100_000))
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert y.mean() == pytest.approx(1.0, abs=0.01)
    network.hold_dropout(None)
    assert layer.p == 0.25 and layer.rate is None


class NothingRead(TorchDispatchMode):
    """Refuses what makes the processor wait for a GPU's numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "_unique2",
        )
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits(device: str) -> Iterator[None]:
    if device == "cpu":
        with NothingRead():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_chunk_of_steps_waits_for_nothing(
    change: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu" and change == "rmsprop":
        pytest.skip("on a processor PyTorch's own reads the rate, which costs nothing there")
    usual, chunks = Classifier.training_step, []

    def watched(module: Classifier, chunk: Any, batch_idx: int) -> None:
        recorded = isinstance(module._advance, Replay) and len(module._advance._recorded) == 2
        if recorded:
            chunks.append(batch_idx)
            with nothing_waits(device):
                usual(module, chunk, batch_idx)
        else:
            usual(module, chunk, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watched)
    fit(device, graphs=True, **CHANGES[change])
    assert len(chunks) >= 2


@needs_gpu
def test_a_step_that_waits_is_made_as_it_is_and_the_log_says_where(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Waiting(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.abs().max() >= 0)

    network = MLP(2, 3, hidden=[16])
    network.layers[2] = Waiting()
    with caplog.at_level(logging.INFO), pytest.raises(AssertionError, match="one of each size"):
        fit("cuda", graphs=True, network=network)
    assert "not as a CUDA graph: test_replay.py:" in caplog.text
    *plain, _ = fit("cuda", graphs=False, network=network)
    assert all(np.isfinite(plain[1]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda network: network.layers[1].register_forward_hook(lambda *_: None), "hook"),
        (lambda network: network.weights[0].register_hook(lambda gradient: None), "hook"),
        (lambda network: None, None),
    ],
)
def test_a_hook_stands_against_it(change: Callable[[MLP], object], reason: str | None) -> None:
    network = MLP(2, 3, hidden=[4])
    change(network)
    found = obstacle(network, AdamW(network.parameters()))
    assert (found is None) if reason is None else reason in str(found)


def test_an_optimizer_of_ones_own_stands_against_it() -> None:
    class Own(SGD):
        pass

    network = MLP(2, 3, hidden=[4])
    assert "Own" in str(obstacle(network, Own(network.parameters())))
    assert "LBFGS" in str(obstacle(network, torch.optim.LBFGS(network.parameters())))


def test_other_shapes_are_steps_of_their_own() -> None:
    weight = nn.Parameter(torch.zeros(()))
    optimizer = SGD([weight], lr=0.5)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (weight - x.mean()).square()
        loss.backward()
        optimizer.step()
        return loss.detach()

    replay = Replay(step, optimizer, device=torch.device("cpu"))
    for n in [2] * (EAGER + 2) + [3] * (EAGER + 2):
        replay(torch.full((n,), float(n)))
        assert float(weight.detach()) == n
    assert len(replay._recorded) == 2


STACKS = {
    "alike": [["seed=1"], ["seed=2"]],
    "paces": [["optimizer.lr=0.01"], ["optimizer.lr=0.02", "seed=2"]],
    "dropout": [["model.dropout=0.2", "dropout.start=0.1"], ["seed=2"]],
    "moving": [["dropout=early", "dropout.start=0.3"], ["dropout=linear", "dropout.end=0.4"]],
    "bounds": [["regularization.l1=0.001"], ["regularization.max_norm=0.7", "seed=2"]],
    "leaving": [["callbacks.early_stopping.patience=1", f"seed={k}"] for k in range(4)],
    "batch norm": [["model.norm=batch", f"seed={k}"] for k in (1, 2)],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STACKS)
def test_stacks(name: str, device: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ["data=spirals", "data.points=150", "model.hidden=[12,8]", "trainer.max_epochs=6"]
    common += ["data.batch_size=32", "schedule=constant", f"trainer.accelerator={device}"]
    jobs = [[*common, "optimizer.lr=0.015625", *own] for own in STACKS[name]]
    usual = member.Member.__init__

    def with_graphs(own: Any, *args: Any) -> None:
        usual(own, *args)
        own.graphs = True

    if device == "cpu":
        plain = launch("fused", jobs, tmp_path / "plain", processes=1)
        monkeypatch.setattr(member.Member, "__init__", with_graphs)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Replay, "_record", lambda own, places: partial(as_it_is, own, places))
            plain = launch("fused", jobs, tmp_path / "plain", processes=1)
    replayed = launch("fused", jobs, tmp_path / "replayed", processes=1)
    for number, (a, b) in enumerate(zip(plain, replayed, strict=True)):
        assert a.return_value == b.return_value
        models = [tmp_path / kind / str(number) / "model" for kind in ("plain", "replayed")]
        left, right = (load_file(model / "model.safetensors") for model in models)
        assert all(torch.equal(value, right[key]) for key, value in left.items())
