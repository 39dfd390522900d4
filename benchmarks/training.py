"""Training speed of the default model against what one would write by hand, in one run.

    python benchmarks/training.py --rounds 3 --epochs 4

Every contender trains the same network (784-256-128-10, ReLU, dropout 0.2) on the same 55,000
images with AdamW at batch 128 and as many threads, in a process of its own, one after the other, so
that they can be compared even when the machine's speed drifts between rounds. The figure is
samples per second over the training batches alone, the median over the epochs.
"""

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "mnist"
BATCH, RATE, DECAY, DROPOUT, VALIDATION = 128, 2e-3, 0.01, 0.2, 5000


def perceptrail(epochs: int) -> float:
    """The public command, with progress bar and MLflow tracking on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(ROOT / "train.py"), f"data.dir={DATA}", "schedule=constant"),
            *(f"trainer.max_epochs={epochs}", f"hydra.run.dir={folder}/run"),
        ]
        watched, terminal = pty.openpty()  # a bar is drawn on a terminal alone
        reader = threading.Thread(target=_drain, args=(watched,), daemon=True)
        reader.start()
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=terminal, check=True)
        os.close(terminal)
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    return float(metrics["train/samples_per_second"])


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:  # the other end has closed
        pass


def hand_written_loop(epochs: int) -> float:
    """A plain PyTorch loop over tensors that stay in memory: the least there is to do."""
    import torch

    from perceptrail.data.sets import mnist

    images, labels = (torch.from_numpy(part) for part in mnist(dir=DATA).train())
    x = ((images - images.mean()) / images.std())[VALIDATION:]
    y = labels[VALIDATION:]
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    lose = torch.nn.CrossEntropyLoss()

    def epoch() -> int:
        for i in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            lose(network(x[i]), y[i]).backward()
            optimizer.step()
        return len(x)

    return _speed(epoch, epochs)


def lightning_template(epochs: int) -> float:
    """Lightning, torchvision's dataset and a DataLoader with workers, as templates have it."""
    import warnings

    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, random_split
    from torchmetrics.classification import MulticlassAccuracy
    from torchvision.datasets import MNIST
    from torchvision.transforms import v2

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network()
            self.accuracy = MulticlassAccuracy(10)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            logits = self.network(x.flatten(1))
            loss = torch.nn.functional.cross_entropy(logits, y)
            self.accuracy(logits, y)
            self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
            self.log("train/acc", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=DECAY)

    class Clock(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            speeds.append((60_000 - VALIDATION) / (time.perf_counter() - self.started))

    speeds: list[float] = []
    warnings.simplefilter("ignore")
    to_tensor = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.1307,), (0.3081,)),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "MNIST").mkdir()
        (Path(folder) / "MNIST" / "raw").symlink_to(DATA.absolute())
        images = MNIST(folder, transform=to_tensor)
        part, _ = random_split(images, [60_000 - VALIDATION, VALIDATION])
        loader = DataLoader(part, BATCH, shuffle=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )
        trainer.fit(Module(), loader)
    return median(speeds)


def _network() -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Linear(784, 256), nn.ReLU(), nn.Dropout(DROPOUT)),
        *(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(DROPOUT)),
        nn.Linear(128, 10),
    )


def _speed(epoch: Callable[[], int], epochs: int) -> float:
    speeds = []
    for _ in range(epochs):
        started = time.perf_counter()
        samples = epoch()
        speeds.append(samples / (time.perf_counter() - started))
    return median(speeds)


CONTENDERS: dict[str, Callable[[int], float]] = {
    "perceptrail": perceptrail,
    "hand-written loop": hand_written_loop,
    "Lightning template": lightning_template,
}


def main() -> None:
    """Run the contenders in turn and print speeds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each contender in each round")
    parser.add_argument("--only", choices=CONTENDERS, help="run one, print its figure")
    options = parser.parse_args()
    if options.only:
        print(CONTENDERS[options.only](options.epochs), file=sys.stderr)
        return
    figures: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(options.rounds):
        for name, speeds in figures.items():
            speeds.append(_in_its_own_process(name, options.epochs))
            print(f"round {turn + 1}  {name:20} {speeds[-1]:10,.0f} samples/s", flush=True)
    print("\nperceptrail's speed over that of, by round: median (least to most)")
    for name in list(CONTENDERS)[1:]:
        ratios = [a / b for a, b in zip(figures["perceptrail"], figures[name], strict=True)]
        print(f"  {name:20} {_spread(ratios)}")
    results = ROOT / "benchmarks" / "results" / "training.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(figures, indent=2) + "\n")


def _in_its_own_process(name: str, epochs: int) -> float:
    command = [sys.executable, __file__, "--only", name, "--epochs", str(epochs)]
    ended = subprocess.run(command, check=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    return float(ended.stderr.split()[-1])


def _spread(ratios: Iterable[float]) -> str:
    ordered = sorted(ratios)
    return f"{median(ordered):.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


if __name__ == "__main__":
    main()
