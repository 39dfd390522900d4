"""Which activation function should a network use, and why not the step?

Without activation functions, layers of weighted sums collapse into a single one. A neuron that
either fires or does not is a step; but a step is level everywhere, and learning follows the slope.
So networks use functions that have one. Where even those are flat, a unit is saturated and passes
hardly any gradient on; where one is flat for every example, it is dead and will learn no more.

Each function is drawn with its derivative, followed through twenty untrained layers, and trained:
on XOR, on two spirals, on digits, at growing depth, and at learning rates that are too high. All
start from weights scaled so that the signal keeps its size under that very function.
"""

from perceptrail.studies import Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections import defaultdict
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceptrail import charts, runs
from perceptrail.activations import ACTIVATIONS, Activation
from perceptrail.data.module import numbers
from perceptrail.data.synthetic import xor
from perceptrail.losses import mean_loss
from perceptrail.model import MLP
from perceptrail.scratch.losses import LOSSES
from perceptrail.scratch.network import Network
from perceptrail.scratch.optimizers import Adam

STEP = Activation(lambda x: (x > 0).astype(float), np.zeros_like, (0.0, 1.0), "")
FLAT = 0.01  # a slope below this lets hardly any gradient through
FADED = 0.1  # of the gradient: less has not come through
EXAMPLES = 1000  # for which the slope of each unit is taken
CLOSE, FAR = 0.01, 0.03  # of the best accuracy: as good as the best; not far behind
PLAIN = ("model.dropout=0", "callbacks.early_stopping=null")

FUNCTIONS = {"step": STEP, **ACTIVATIONS}
Values = defaultdict[Any, list[float]]  # of every seed, by activation or whatever varies


def main(study: Study) -> None:
    """The functions, the step, what they do untrained, and what training does with them."""
    cfg = study.cfg
    study.figure(
        "functions",
        charts.functions(
            {name: {"f": a.f, "f′": a.df} for name, a in FUNCTIONS.items()},
            title="Activation functions and their derivatives",
            between=(-4, 4),
        ),
        "The step is level on either side of its jump: its derivative is 0.",
    )
    step(study)
    centre, through = untrained(study)
    behind = trained(study)
    deep = depth(study)
    mortality(study)
    x = np.linspace(-15, 15, 301)
    y = {name: ACTIVATIONS[name].f(x) for name in ("sigmoid", "tanh", "relu")}
    deepest = max(cfg.depths)
    study.claim(
        "Sigmoid: values in (0, 1), for the output of a binary classifier",
        verdict(
            0 < y["sigmoid"].min() < y["sigmoid"].max() < 1
            and mean(deep["relu", deepest]) - mean(deep["sigmoid", deepest]) > FAR
        ),
        f"of two classes, the output of every network here; but in hidden layers "
        f"{mean(through['sigmoid']):.1g} of the gradient gets through {cfg.layers} of them, and "
        f"{deepest} trained ones end at {percent(deep['sigmoid', deepest])} of the digits, with "
        f"ReLU at {percent(deep['relu', deepest])}",
    )
    is_centred = -1 < y["tanh"].min() < y["tanh"].max() < 1 and abs(mean(centre["tanh"])) < 0.1
    study.claim(
        "Tanh: values in (-1, 1), centred at 0, for hidden layers",
        verdict(is_centred and behind["tanh"] <= CLOSE, partly=is_centred),
        f"the mean of its outputs is {mean(centre['tanh']):.2f} of their root mean square, of the "
        f"sigmoid's {mean(centre['sigmoid']):.2f}; on the three tasks it is at most "
        f"{100 * behind['tanh']:.1f} points behind the best",
    )
    study.claim(
        "ReLU: values in [0, ∞), the usual choice for hidden layers",
        verdict(
            y["relu"].min() == 0 and behind["relu"] <= CLOSE,
            partly=y["relu"].min() == 0 and behind["relu"] <= FAR,
        ),
        f"on the three tasks at most {100 * behind['relu']:.1f} points behind the best",
    )
    share = LOSSES["cross_entropy"].probabilities(np.random.default_rng(0).normal(0, 5, (1000, 10)))
    off = float(np.abs(share.sum(axis=1) - 1).max())
    study.claim(
        "Softmax: values in (0, 1) that sum to 1, for the output among several classes",
        verdict(0 < share.min() < share.max() < 1 and off < 1e-12),
        f"of 1,000 random vectors, the values lie from {share.min():.1g} to {share.max():.6f}, and "
        f"their sum is off 1 by at most {off:.0e}",
    )


def step(study: Study) -> None:
    """XOR with hidden units that are steps, whose slope is 0, beside sigmoid and ReLU."""
    cfg = study.cfg
    accuracy, moved = Values(list), Values(list)
    for name, seed in product(("step", "sigmoid", "relu"), range(cfg.step_seeds)):
        shape, loss = [2, cfg.step_width, 1], "binary_cross_entropy"
        network = Network(shape, activation=FUNCTIONS[name], loss=loss, seed=seed)
        hidden, bias = network.layers[0]
        bias[...] = np.random.default_rng(seed).normal(size=len(bias))  # or all lines meet at 0
        before = hidden.copy()
        (x, y), validation = (xor(800, noise=0.1, seed=(seed, part)) for part in (1, 2))
        network.fit(x, y, optimizer=Adam(0.01), epochs=cfg.step_epochs, batch_size=32, seed=seed)
        accuracy[name].append(network.evaluate(*validation)[1])
        moved[name].append(float(np.linalg.norm(hidden - before) / np.linalg.norm(before)))
        now = {"val/acc": accuracy[name][-1], "moved": moved[name][-1]}
        study.note("step", variant=name, seed=seed, **now)
    study.figure(
        "step",
        charts.dots(
            {"hidden weights: change (%)": moved, "validation accuracy (%)": accuracy},
            title=f"XOR with {cfg.step_width} hidden units, {cfg.step_seeds} seeds",
            x="",
            percent=True,
        ),
        "How far training moved the hidden layer's weights, in percent of their length, and what "
        "came of it. Steps leave them where they began; only the output layer learns.",
    )
    for name in accuracy:
        study.metric(f"step/accuracy/{name}", accuracy[name])
        study.metric(f"step/moved/{name}", moved[name])
    learned = {name: mean(a > 0.99 for a in values) for name, values in accuracy.items()}
    stuck = max(moved["step"]) == 0
    study.claim(
        "The step's gradient is 0 everywhere, so gradient descent does not work",
        verdict(stuck and learned["step"] == 0, partly=stuck),
        f"the hidden weights moved by {max(moved['step']):.0%}; left with the lines they began "
        f"with, the output layer learned XOR with {learned['step']:.0%} of the seeds, against "
        f"{learned['sigmoid']:.0%} for sigmoid and {learned['relu']:.0%} for ReLU",
    )
    study.claim(
        "Networks need smooth, differentiable activation functions",
        verdict(stuck and learned["relu"] < 0.5 * learned["sigmoid"], partly=stuck),
        "what they need is a slope: ReLU, which has a corner, learned XOR with "
        f"{learned['relu']:.0%} of the seeds, the smooth sigmoid with {learned['sigmoid']:.0%}",
    )


def untrained(study: Study) -> tuple[Values, Values]:
    """Untrained networks: how centred their signals are, and how much gradient gets through."""
    cfg = study.cfg
    centre, level, through = Values(list), Values(list), Values(list)
    sizes = defaultdict[str, list[list[float]]](list)  # of every seed, by layer
    for name, seed in product(cfg.activations, range(cfg.seeds)):
        torch.manual_seed(seed)
        network = MLP(cfg.width, 10, hidden=[cfg.width] * (cfg.layers + 1), activation=name)
        x, y = torch.randn(EXAMPLES, cfg.width), torch.randint(10, (EXAMPLES,))
        loss = mean_loss(network(x), y)
        norms = [float(g.norm()) for g in torch.autograd.grad(loss, network.weights[1:-1])]
        sizes[name].append([norm / norms[-1] for norm in reversed(norms)])
        through[name].append(sizes[name][-1][-1])
        z = sums(network, x)
        a = [ACTIVATIONS[name].f(of_layer) for of_layer in z]
        centre[name].append(float(np.mean([v.mean() / np.sqrt((v**2).mean()) for v in a])))
        level[name].append(float(np.mean([is_flat(name, of_layer) for of_layer in z])))
        for layer, size in enumerate(sizes[name][-1], start=1):
            study.note("untrained", variant=name, seed=seed, layer=layer, gradient=size)
        now = {"centre": centre[name][-1], "flat": level[name][-1]}
        study.note("untrained", variant=name, seed=seed, **now)
    layers = list(range(1, cfg.layers + 1))
    curves = {name: (layers, list(zip(*sizes[name], strict=True))) for name in cfg.followed}
    fading = {name: curve for name, curve in curves.items() if mean(through[name]) < FADED}
    kept = {name: curve for name, curve in curves.items() if name not in fading}
    study.figure(
        "gradients",
        charts.lines(
            {k: v for k, v in {"fading": fading, "kept": kept}.items() if v},
            title="Gradients on their way back through an untrained network",
            x="layers, counted from the output",
            y="gradient, relative to the last layer's",
        ),
        f"Length of the weights' gradient in each of {cfg.layers} layers of {cfg.width} units, "
        f"mean ± sd of {cfg.seeds} seeds.",
    )
    study.figure(
        "signals",
        charts.dots(
            {"outputs: mean ÷ root mean square": centre, f"share of slopes below {FLAT}": level},
            title=f"Signals in {cfg.layers} untrained layers",
            x="",
        ),
        "How far the outputs are from being centred at 0, and how often a unit is flat.",
    )
    for name in cfg.activations:
        study.metric(f"untrained/gradient/{name}", through[name])
        study.metric(f"untrained/centre/{name}", centre[name])
        study.metric(f"untrained/flat/{name}", level[name])
    return centre, through


def trained(study: Study) -> dict[str, float]:
    """Train each on three tasks; how far it is behind the best, on the task where that is most."""
    cfg = study.cfg
    variants = {name: [f"model.activation={name}"] for name in cfg.activations}
    spirals = ("data=spirals", "model.hidden=[32,32]", "optimizer.lr=0.01")
    tasks: dict[str, tuple[str, ...]] = {
        "XOR": ("experiment=xor",),
        "spirals": (*spirals, f"trainer.max_epochs={cfg.spirals_epochs}"),
        "MNIST": digits(cfg),
    }
    accuracy: dict[str, dict[Any, list[float]]] = {}
    for task, common in tasks.items():
        done = study.train(task, *common, *PLAIN, variants=variants)
        accuracy[task] = of(done, "best/val/acc")
        for name, values in accuracy[task].items():
            study.metric(f"{task}/{name}", values)
    study.figure(
        "trained",
        charts.dots(
            accuracy,
            title=f"What training makes of each, {cfg.seeds} seeds",
            x="validation accuracy (%)",
            percent=True,
        ),
        f"XOR with 16 hidden units, two spirals with 32 and 32, {cfg.train_size:,} digits of MNIST "
        "with 64 and 64. The identity is no activation at all: its network is a single layer.",
    )
    best = {task: max(map(mean, of_task.values())) for task, of_task in accuracy.items()}
    return {n: max(best[task] - mean(accuracy[task][n]) for task in tasks) for n in variants}


def depth(study: Study) -> dict[Any, list[float]]:
    """Train on digits at growing depth; the accuracy by activation and depth."""
    cfg = study.cfg
    variants = {
        (name, layers): [f"model.activation={name}", f"model.hidden={[cfg.width] * layers}"]
        for name, layers in product(cfg.deep, cfg.depths)
    }
    accuracy = of(study.train("depth", *digits(cfg), *PLAIN, variants=variants), "best/val/acc")
    points = {
        name: (cfg.depths, [accuracy[name, layers] for layers in cfg.depths]) for name in cfg.deep
    }
    study.figure(
        "depth",
        charts.lines(
            {"": points},
            title="Depth that an activation bears",
            x=f"hidden layers of {cfg.width} units",
            y="validation accuracy (%)",
            log_x=True,
            percent=True,
        ),
        f"{cfg.train_size:,} digits, {cfg.epochs} epochs, mean ± sd of {cfg.seeds} seeds.",
    )
    return accuracy


def mortality(study: Study) -> None:
    """Train at learning rates that are too high, and count the units that died of it."""
    cfg = study.cfg
    variants = {
        (name, rate): [f"model.activation={name}", f"optimizer.lr={rate}"]
        for name, rate in product(cfg.mortal, cfg.rates)
    }
    common = (*digits(cfg), *PLAIN, "optimizer=adam", "schedule=constant")
    done = study.train("mortality", *common, variants=variants, may_diverge=True)
    x = numbers(torch.from_numpy(done[0].load()[1].train()[0][:EXAMPLES]))
    dead = Values(list)
    for run in done:
        if run.error:
            continue
        network, _ = MLP.load(run.folder / runs.MODEL)
        name = network.architecture["activation"]
        share = [is_flat(name, z).all(axis=0).mean() for z in sums(network, x)]
        dead[run.variant].append(100 * float(np.mean(share)))
        study.note("dead", variant=run.variant, seed=run.seed, dead=dead[run.variant][-1])
    study.figure(
        "dead",
        charts.lines(
            {"": {n: (cfg.rates, [dead[n, rate] for rate in cfg.rates]) for n in cfg.mortal}},
            title="Units that die of large steps",
            x="learning rate of Adam",
            y="dead units (%)",
            log_x=True,
        ),
        f"Hidden units whose slope is below {FLAT} for each of {EXAMPLES:,} digits after training. "
        "Leaky ReLU's is nowhere less.",
    )
    for name in cfg.mortal:
        study.metric(f"dead/{name}", dead[name, max(cfg.rates)])


def digits(cfg: Any) -> tuple[str, ...]:
    """Few digits, and two hidden layers unless a variant says otherwise."""
    size, epochs = f"data.train_size={cfg.train_size}", f"trainer.max_epochs={cfg.epochs}"
    return ("data=mnist", size, epochs, "data.batch_size=32", "model.hidden=[64,64]")


@torch.no_grad()
def sums(network: MLP, x: Tensor) -> list[NDArray[np.float64]]:
    """What the units of each hidden layer sum up, [n, width], for inputs x [n, inputs]."""
    x, found = (x - torch.tensor(network.mean)) / torch.tensor(network.std), []
    for layer in network.layers:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            found.append(x.double().numpy())
    return found[:-1]


def is_flat(name: str, z: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the activation has hardly any slope."""
    return np.abs(ACTIVATIONS[name].df(z)) < FLAT


if __name__ == "__main__":
    execute(main)
