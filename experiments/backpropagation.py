"""Is backpropagation no more than the chain rule?

The network of `perceptrail.scratch` has its gradient written out, layer by layer, in a few lines of
NumPy. If these are right, they agree with whatever else computes the same thing: with central
differences, which know nothing but the loss; with PyTorch, which records every operation and
differentiates the record; with scikit-learn, which has written out the chain rule, too. And if the
gradients agree, so must the weights that training ends with, and what it learns.
"""

from perceptrail.studies import Run, Study, check, execute, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from math import log10
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from perceptrail import charts
from perceptrail.activations import ACTIVATIONS
from perceptrail.data.module import DataModule
from perceptrail.losses import mean_loss
from perceptrail.model import MLP
from perceptrail.scratch.network import Network, numerical_gradient
from perceptrail.scratch.optimizers import SGD, Adam, Optimizer

Floats = NDArray[np.float64]
Values = defaultdict[str, list[float]]  # of every seed

INPUTS, RATE = 4, 0.01
OUTPUTS = {"cross_entropy": 3, "binary_cross_entropy": 1}
IN_SKLEARN = {"identity": "identity", "sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}
OPTIMIZERS: dict[str, tuple[Callable[[], Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (partial(SGD, RATE), partial(torch.optim.SGD, lr=RATE)),
    "momentum": (
        partial(SGD, RATE, momentum=0.9),
        partial(torch.optim.SGD, lr=RATE, momentum=0.9),
    ),
    "Adam": (partial(Adam, RATE), partial(torch.optim.Adam, lr=RATE)),
}


def main(study: Study) -> None:
    """Compare gradients, then weights after many steps, then what is learned and how fast."""
    with threadpool_limits(1):  # so that the speeds are of the same single thread
        gradients(study)
        weights(study)
        shares(study)
        digits(study)


def gradients(study: Study) -> None:
    """Gradients of one batch, of every activation and loss, computed in four ways."""
    cfg = study.cfg
    against = ("PyTorch", "scikit-learn", "central differences")
    found = {way: Values(list) for way in against}
    for name, loss, seed in product(ACTIVATIONS, OUTPUTS, range(cfg.seeds)):
        network, x, y = problem(cfg, activation=name, loss=loss, seed=seed)
        ours = gradient(network, x, y)
        theirs = {
            "PyTorch": torch_gradient(twin(network, name), x, y),
            "central differences": numerical_gradient(
                partial(loss_of, network, x, y), network.theta
            ),
        }
        if name in IN_SKLEARN:
            peer = SklearnTwin(network, name, x, y, rate=1.0)
            peer.step()
            theirs["scikit-learn"] = network.theta - peer.theta  # what one step of rate 1 takes off
        for way, other in theirs.items():
            difference = float(np.linalg.norm(ours - other) / np.linalg.norm(ours))
            found[way][name].append(difference)
            study.note("gradients", variant=(name, loss), seed=seed, way=way, difference=difference)
    study.figure(
        "gradients",
        charts.dots(
            {way: {n: [log10(d) for d in ds] for n, ds in found[way].items()} for way in against},
            title="Gradients in NumPy against three others",
            x="log₁₀ of the relative difference",
        ),
        f"Both classification losses, {cfg.seeds} seeds each, in float64, which has 16 digits. "
        "Central differences are themselves inexact from about the tenth digit on.",
    )
    worst = {way: max(max(values) for values in found[way].values()) for way in against}
    for way in against:
        study.metric(f"gradients/worst/{way}", worst[way])
    study.claim(
        "Backpropagation is repeated application of the chain rule",
        verdict(max(worst.values()) < 1e-6),
        f"written out so, the gradients of {len(ACTIVATIONS)} activations and {len(OUTPUTS)} "
        "losses of classifiers differ at most, relative to their length, "
        + ", ".join(f"by {worst[way]:.0e} from {way}" for way in against),
    )


def weights(study: Study) -> None:
    """The same start and the same batches: how far the weights are apart after many steps."""
    cfg = study.cfg
    apart = {"PyTorch": Values(list), "scikit-learn": Values(list)}
    for name, seed in product(OPTIMIZERS, range(cfg.seeds)):
        ours, theirs = OPTIMIZERS[name]
        network, x, y = problem(cfg, activation="tanh", loss="cross_entropy", seed=seed)
        other, optimizer = twin(network, "tanh"), ours()
        peer = SklearnTwin(network, "tanh", x, y, rate=RATE)
        their_optimizer = theirs(other.parameters())
        for _ in range(cfg.steps):
            optimizer.step(network.theta, gradient(network, x, y))
            torch_gradient(other, x, y)
            their_optimizer.step()
            peer.step()
        ends = {"PyTorch": flat(other.parameters())}
        if name == "SGD":  # scikit-learn's other optimizers would remember the step that starts it
            ends["scikit-learn"] = peer.theta
        for library, end in ends.items():
            difference = float(np.abs(network.theta - end).max())
            apart[library][name].append(difference)
            study.note("weights", variant=name, seed=seed, way=library, difference=difference)
    most = {
        f"{name}/{library}": study.metric(f"weights/{name}/{library}", max(values))
        for library in apart
        for name, values in apart[library].items()
    }
    study.claim(
        "A network in NumPy alone learns just what one in PyTorch does",
        verdict(max(most.values()) < 1e-10),
        f"from the same weights and batches, no weight is further off after {cfg.steps} steps "
        "than " + ", ".join(f"{value:.0e} ({pair})" for pair, value in most.items()),
    )


def shares(study: Study) -> None:
    """How the first step of an optimizer divides among the weights, next to their gradients."""
    cfg = study.cfg
    follows, span = Values(list), Values(list)
    for name, seed in product(("SGD", "Adam"), range(cfg.seeds)):
        network, x, y = problem(cfg, activation="tanh", loss="cross_entropy", seed=seed)
        before, g = network.theta.copy(), gradient(network, x, y)
        OPTIMIZERS[name][0]().step(network.theta, g)
        moved = before - network.theta
        follows[name].append(float(np.corrcoef(moved, g)[0, 1]))
        span[name].append(spread(moved))
        now = {"correlation": follows[name][-1], "spread": span[name][-1]}
        study.note("shares", variant=name, seed=seed, **now)
    in_proportion = {name: min(values) > 1 - 1e-9 for name, values in follows.items()}
    study.claim(
        "Each weight is updated in proportion to its part in the error",
        verdict(all(in_proportion.values()), partly=in_proportion["SGD"]),
        "the first step of SGD correlates with the gradient by "
        f"{study.metric('shares/SGD', follows['SGD']):.3f}, that of Adam by "
        f"{study.metric('shares/Adam', follows['Adam']):.3f}: where gradients differ by a factor "
        f"of {np.mean(span['SGD']):.0f} (95th percentile over 5th), Adam's steps differ "
        f"by {np.mean(span['Adam']):.2f}",
    )


def digits(study: Study) -> None:
    """Train the same network on the same digits in each library: accuracy, speed, cost."""
    cfg = study.cfg
    done = study.train(
        "digits",
        "data=mnist",
        f"data.train_size={cfg.train_size}",
        f"model.hidden={list(cfg.digit_hidden)}",
        *("model.dropout=0", "callbacks.early_stopping=null", "schedule=constant"),
        *("optimizer=adam", f"trainer.max_epochs={cfg.epochs}"),
        variants={"torch": []},
    )
    accuracy, speed, cost = Values(list), Values(list), []
    for run in done:
        (x, y), validation = examples(run, cfg.train_size)
        network = Network([784, *cfg.digit_hidden, 10], seed=run.seed, dtype=np.float32)
        peer = MLPClassifier(
            tuple(cfg.digit_hidden),
            alpha=0,
            batch_size=128,
            random_state=np.random.RandomState(run.seed),  # a number would repeat the first order
        )
        ours = partial(network.fit, optimizer=Adam(1e-3), epochs=cfg.epochs, seed=run.seed)
        theirs = partial(peer.partial_fit, classes=range(10))  # an epoch
        seen = cfg.epochs * len(x)
        speeds = {
            "NumPy": seen / timed(ours, x, y),
            "PyTorch": run["train/samples_per_second"],
            "scikit-learn": seen / sum(timed(theirs, x, y) for _ in range(cfg.epochs)),
        }
        scores = {
            "NumPy": network.evaluate(*validation)[1],
            "PyTorch": run.history[-1]["val/acc"],
            "scikit-learn": float(peer.score(*validation)),
        }
        for way, score in scores.items():
            accuracy[way].append(score)
            speed[way].append(speeds[way])
            study.note("accuracy", variant=way, seed=run.seed, **{"val/acc": score})
        forward, both = (
            min(timed(compute, network, x[:128], y[:128]) for _ in range(20))
            for compute in (loss_of, gradient)
        )
        cost.append(both / forward)
    for way in accuracy:
        study.metric(f"accuracy/{way}", accuracy[way])
        study.metric(f"time/samples_per_second/{way}", speed[way])
    shape = "-".join(map(str, network.widths))
    study.figure(
        "digits",
        charts.dots(
            {
                "validation accuracy (%)": {w: [100 * a for a in v] for w, v in accuracy.items()},
                "thousand examples per second": {w: [s / 1000 for s in speed[w]] for w in speed},
            },
            title=f"The network {shape}, trained on {cfg.train_size:,} digits",
            x="",
        ),
        f"Adam, batches of 128, {cfg.epochs} epochs, {cfg.seeds} seeds, one thread. PyTorch is "
        "trained as all runs here are, scikit-learn by its own `partial_fit`.",
    )
    gap = max(map(np.mean, accuracy.values())) - min(map(np.mean, accuracy.values()))
    study.claim(
        "The same network learns the same in NumPy, PyTorch and scikit-learn",
        verdict(bool(gap < 0.01)),
        "; ".join(f"{way} {percent(values)}" for way, values in accuracy.items()),
    )
    passes = 2 * len(network.theta)
    study.claim(
        "Backpropagation computes gradients efficiently",
        verdict(max(cost) < passes / 100),
        f"all {passes // 2:,} parts of the gradient take the time of {np.mean(cost):.1f} losses; "
        f"central differences would take {passes:,}",
    )


def examples(run: Run, train_size: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """The training and the validation examples of a run, standardised as its network does."""
    _, data = run.load()
    module = DataModule(data, batch_size=128, val_size=5000, train_size=train_size, seed=run.seed)
    module.setup("fit")
    split = (module.train, module.val)
    mean, std = torch.tensor(module.mean), torch.tensor(module.std)
    return [(((x - mean) / std).numpy(), y.numpy()) for x, y in split]


def problem(cfg: Any, *, activation: str, loss: str, seed: int) -> tuple[Network, Floats, Any]:
    """A small network in float64, with random biases, and examples x [n, d] with labels y [n]."""
    rng = np.random.default_rng((seed, 1))
    widths = [INPUTS, *cfg.hidden, OUTPUTS[loss]]
    network = Network(widths, activation=activation, loss=loss, seed=seed)
    for _, b in network.layers:
        b[...] = rng.normal(size=b.shape)
    y = np.arange(cfg.examples) % max(2, OUTPUTS[loss])
    return network, rng.normal(size=(cfg.examples, INPUTS)), y


def loss_of(network: Network, x: NDArray[Any], y: NDArray[Any]) -> float:
    """The loss."""
    return network.loss(network.forward(x), y)


def gradient(network: Network, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """The gradient of the loss by backpropagation."""
    network.forward(x)
    return network.backward(y)


def twin(network: Network, activation: str) -> MLP:
    """PyTorch's network with the same weights, in float64."""
    first, *hidden, last = network.widths
    other = MLP(first, last, hidden=hidden, activation=activation).double()
    with torch.no_grad():
        for parameter, ours in zip(other.parameters(), parts(network), strict=True):
            parameter.copy_(torch.from_numpy(ours.T))
    return other


def torch_gradient(other: MLP, x: Floats, y: NDArray[Any]) -> Floats:
    """The gradient by autograd, in the order of the network in NumPy; it also stays in `other`."""
    other.zero_grad()
    labels, z = torch.from_numpy(y), other(torch.from_numpy(x))
    if z.shape[1] == 1:
        labels = labels.double()  # or PyTorch takes the mean in float32
    mean_loss(z, labels).backward()
    return flat(parameter.grad for parameter in other.parameters())


def flat(tensors: Iterable[Any]) -> Floats:
    """Tensors of the parameters' shapes, in the order of the network in NumPy."""
    return np.concatenate([tensor.detach().numpy().T.ravel() for tensor in tensors])


def parts(network: Network) -> list[NDArray[Any]]:
    """Weights and biases in turns, from the first layer on."""
    return [part for layer in network.layers for part in layer]


class SklearnTwin:
    """scikit-learn's network with the same weights, trained on all of x, y by plain SGD."""

    def __init__(
        self, network: Network, activation: str, x: Floats, y: NDArray[Any], *, rate: float
    ) -> None:
        self._x, self._y = x, y
        self._network = MLPClassifier(
            network.widths[1:-1],
            activation=IN_SKLEARN[activation],
            solver="sgd",
            alpha=0,
            learning_rate_init=rate,
            momentum=0,
            shuffle=False,
            batch_size=len(x),
        )
        self._network.partial_fit(x, y, classes=np.unique(y))  # makes the weights, which are:
        for own, ours in zip(self._parts(), parts(network), strict=True):
            own[...] = ours

    def step(self) -> None:
        """Make one step."""
        self._network.partial_fit(self._x, self._y)

    @property
    def theta(self) -> Floats:
        """All parameters, in the order of the network in NumPy."""
        return np.concatenate([part.ravel() for part in self._parts()])

    def _parts(self) -> list[Floats]:
        layers = zip(self._network.coefs_, self._network.intercepts_, strict=True)
        return [part for layer in layers for part in layer]


def spread(values: Floats) -> float:
    """How many times larger the 95th percentile of the sizes is than the 5th."""
    low, high = np.quantile(np.abs(values), [0.05, 0.95])
    return float(high / low)


def timed(call: Callable[..., object], *arguments: object) -> float:
    """How many seconds a call takes."""
    start = perf_counter()
    call(*arguments)
    return perf_counter() - start


if __name__ == "__main__":
    execute(main)
