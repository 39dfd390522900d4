"""What else one would train the network with; each a function that trains by itself.

    python -m benchmarks.peers NAME

does, one after the other, the tasks that come as lines of JSON, and answers each with a line an
epoch and an empty one. Libraries are imported once the first task is there.
"""

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.task import CLASSES, DATA, INPUTS, SEED, Task, examples, indices

# Takes an epoch's seconds over the training batches alone and the validation accuracy after it;
# returns whether that was enough.
Report = Callable[[float, float], bool]


def hand_written(task: Task, report: Report) -> None:
    """A plain PyTorch loop over tensors that stay in memory."""
    import torch
    from benchmarks.loop import Loop

    torch.manual_seed(SEED)
    x, y, val_x, val_y = map(torch.from_numpy, examples(task.images))
    loop = Loop(
        *(x, y),
        hidden=task.hidden,
        dropout=task.dropout,
        classes=CLASSES,
        batch=task.batch,
        rate=task.rate,
    )
    while not report(loop.epoch(), loop.accuracy(val_x, val_y)):
        pass


def dataloader(task: Task, report: Report) -> None:
    """PyTorch's tutorials: torchvision's dataset, a DataLoader, a loop."""
    import torch
    from benchmarks.loop import network

    torch.manual_seed(SEED)
    train, val = _torchvision_loaders(task)
    model = network(INPUTS, task.hidden, CLASSES, dropout=task.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.rate)
    loss = torch.nn.CrossEntropyLoss()
    enough = False
    while not enough:
        model.train()
        started = time.perf_counter()
        for x, y in train:
            optimizer.zero_grad()
            loss(model(x.flatten(1)), y).backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x.flatten(1)).argmax(1) == y).sum()) for x, y in val)
        enough = report(seconds, right / len(val.dataset))


def lightning(task: Task, report: Report) -> None:
    """Lightning with torchvision's dataset, DataLoaders and torchmetrics, as templates have it."""
    import pytorch_lightning as pl
    import torch
    from benchmarks.loop import network
    from torchmetrics.classification import MulticlassAccuracy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(INPUTS, task.hidden, CLASSES, dropout=task.dropout)
            self.loss = torch.nn.CrossEntropyLoss()
            self.train_accuracy = MulticlassAccuracy(CLASSES, average="micro")
            self.val_accuracy = MulticlassAccuracy(CLASSES, average="micro")

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            logits = self.network(x.flatten(1))
            loss: torch.Tensor = self.loss(logits, y)
            self.train_accuracy(logits, y)
            self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
            self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            logits = self.network(x.flatten(1))
            self.val_accuracy(logits, y)
            self.log("val/loss", self.loss(logits, y), prog_bar=True)
            self.log("val/acc", self.val_accuracy, prog_bar=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=task.rate)

    class Watch(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_validation_start(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = report(self.seconds, float(trainer.callback_metrics["val/acc"]))

    pl.seed_everything(SEED, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=task.epochs,
            accelerator="cpu",
            logger=pl.loggers.CSVLogger(folder),
            num_sanity_val_steps=0,
            callbacks=[Watch()],
        )
        trainer.fit(Module(), *_torchvision_loaders(task))


def scikit_learn(task: Task, report: Report) -> None:
    """MLPClassifier; what `fit` would do, epoch by epoch."""
    from sklearn.neural_network import MLPClassifier

    x, y, val_x, val_y = examples(task.images)
    model = MLPClassifier(
        task.hidden,
        alpha=0.0,
        batch_size=task.batch,
        learning_rate_init=task.rate,
        random_state=SEED,
    )
    train = partial(model.partial_fit, x, y, classes=range(CLASSES))
    while not report(_seconds(train), model.score(val_x, val_y)):
        pass


def skorch(task: Task, report: Report) -> None:
    """Skorch's NeuralNetClassifier, with its defaults for the rest."""
    import skorch  # type: ignore[import-not-found]
    import torch
    from benchmarks.loop import network

    torch.manual_seed(SEED)
    x, y, val_x, val_y = examples(task.images)
    model = skorch.NeuralNetClassifier(
        network(INPUTS, task.hidden, CLASSES, dropout=task.dropout),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=task.rate,
        batch_size=task.batch,
        iterator_train__shuffle=True,
        max_epochs=1,
        train_split=None,
        verbose=0,
    )
    while not report(_seconds(lambda: model.partial_fit(x, y)), model.score(val_x, val_y)):
        pass


def keras(task: Task, report: Report) -> None:
    """Keras on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras  # type: ignore[import-not-found]
    from jax import block_until_ready  # type: ignore[import-not-found]

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_test_begin(self, logs: Any = None) -> None:  # JAX may still be at it
            block_until_ready([weight.value for weight in self.model.trainable_variables])
            self.seconds = time.perf_counter() - self.started

        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            self.model.stop_training = report(self.seconds, float(logs["val_accuracy"]))

    keras.utils.set_random_seed(SEED)
    x, y, *validation = examples(task.images)
    relu = [keras.layers.Dense(width, activation="relu") for width in task.hidden]
    model = keras.Sequential([keras.Input((INPUTS,)), *relu, keras.layers.Dense(CLASSES)])
    model.compile(
        optimizer=keras.optimizers.Adam(task.rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x,
        y,
        batch_size=task.batch,
        epochs=task.epochs,
        validation_data=tuple(validation),
        callbacks=[Watch()],
        verbose=0,
    )


def jax(task: Task, report: Report) -> None:
    """JAX with Adam by hand and one compiled scan over an epoch's batches."""
    import jax
    import numpy as np
    from jax import numpy as jnp

    random = np.random.default_rng(SEED)
    x, y, val_x, val_y = map(jnp.asarray, examples(task.images))
    weights = [
        (jnp.asarray(random.normal(0, (2 / a) ** 0.5, (a, b)), jnp.float32), jnp.zeros(b))
        for a, b in pairwise((INPUTS, *task.hidden, CLASSES))
    ]

    def logits(weights: Any, x: Any) -> Any:
        *hidden, (last, bias) = weights
        for w, b in hidden:
            x = jax.nn.relu(x @ w + b)
        return x @ last + bias

    def loss(weights: Any, x: Any, y: Any) -> Any:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(weights, x)), y[:, None], axis=1)
        return -chosen.mean()

    def step(x: Any, y: Any, state: Any, i: Any) -> tuple[Any, Any]:
        weights, first, second, t = state
        value, gradient = jax.value_and_grad(loss)(weights, x[i], y[i])
        tree, t = jax.tree.map, t + 1
        first = tree(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = tree(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate = task.rate / (1 - 0.9**t)
        rms = 1 / (1 - 0.999**t)
        weights = tree(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v * rms) + 1e-8), weights, first, second
        )
        return (weights, first, second, t), value

    def train(state: Any, order: Any, x: Any, y: Any) -> Any:
        return jax.lax.scan(partial(step, x, y), state, order)[0]

    def recognised(weights: Any, x: Any, y: Any) -> Any:
        return (logits(weights, x).argmax(1) == y).mean()

    epoch, accuracy = jax.jit(train, donate_argnums=0), jax.jit(recognised)
    zeros = partial(jax.tree.map, jnp.zeros_like, weights)
    state = (weights, zeros(), zeros(), jnp.float32(0))
    enough = False
    while not enough:
        started = time.perf_counter()
        order = jnp.asarray(random.permutation(len(x)).reshape(-1, task.batch))
        state = jax.block_until_ready(epoch(state, order, x, y))
        enough = report(time.perf_counter() - started, float(accuracy(state[0], val_x, val_y)))


LOOP = "hand-written loop"
PEERS: Mapping[str, Callable[[Task, Report], None]] = {
    LOOP: hand_written,
    "PyTorch DataLoader": dataloader,
    "Lightning template": lightning,
    "scikit-learn": scikit_learn,
    "skorch": skorch,
    "Keras on JAX": keras,
    "JAX, jitted scan": jax,
}


def _torchvision_loaders(task: Task) -> Any:
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import MNIST
    from torchvision.transforms import Compose, Normalize, ToTensor

    with tempfile.TemporaryDirectory() as folder:  # all is read at once
        (Path(folder) / "MNIST").mkdir()
        (Path(folder) / "MNIST" / "raw").symlink_to(DATA.absolute())
        images = MNIST(folder, transform=Compose([ToTensor(), Normalize((0.1307,), (0.3081,))]))
    train, val = (Subset(images, part.tolist()) for part in indices(task.images))
    return DataLoader(train, task.batch, shuffle=True), DataLoader(val, task.batch)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Do the tasks that come in."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    born = time.perf_counter()
    for line in sys.stdin:
        task, done = Task.loads(line), 0

        def report(seconds: float, accuracy: float, task: Task = task) -> bool:
            nonlocal done
            done += 1
            print(json.dumps({"seconds": seconds, "accuracy": accuracy}), file=answers, flush=True)
            spent = time.perf_counter() - born
            return accuracy >= task.target or done == task.epochs or spent > task.seconds

        PEERS[sys.argv[1]](task, report)
        print(file=answers, flush=True)


if __name__ == "__main__":
    main()
