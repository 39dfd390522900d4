"""What can a single neuron learn, and what never?

A perceptron weighs its inputs, adds them up with a bias, and fires if the sum is above zero. It
learns from mistakes alone: each one turns the line between firing and silence towards the example
that was wrong. Where some line parts the two classes, the rule finds one; where none does, it goes
round in circles. Of the functions of two bits, all but two can be parted.
"""

from perceptrail.studies import Study, check, execute, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceptrail import charts
from perceptrail.drawing import BLUE, INK, MEDIUM, SHADE, SMALL, VERMILION, panel, sheet
from perceptrail.scratch.perceptron import Epoch, Perceptron

CORNERS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
PARTED = {"AND": (0, 0, 0, 1), "OR": (0, 1, 1, 1), "NAND": (1, 1, 1, 0)}
GATES = PARTED | {"XOR": (0, 1, 1, 0)}


def main(study: Study) -> None:
    """Teach the gates, draw the line as it moves, then teach every function of two bits."""
    cfg = study.cfg
    seeds = range(cfg.seeds)
    learning = {
        (gate, seed): teach(truth, seed=seed, epochs=cfg.epochs)
        for (gate, truth), seed in product(GATES.items(), seeds)
    }
    for (gate, seed), history in learning.items():
        for number, epoch in enumerate(history, start=1):
            w1, w2 = epoch.weights
            line = {"w1": w1, "w2": w2, "b": epoch.bias}
            study.note(
                "gates", variant=gate, seed=seed, epoch=number, mistakes=epoch.mistakes, **line
            )
    study.figure(
        "line",
        frames(
            {gate: moves(truth, epochs=cfg.epochs) for gate, truth in GATES.items()}, cfg.frames
        ),
        "The neuron fires in the shaded part. Filled corners should make it fire, empty ones not; "
        "red ones are on the wrong side. Each mistake moves the line. With XOR the same lines come "
        f"back, and so it goes on: these are the last of {cfg.epochs} epochs.",
    )
    longest = max(len(learning[gate, seed]) for gate, seed in product(PARTED, seeds))
    shown = list(range(1, longest + 4))
    study.figure(
        "mistakes",
        charts.lines(
            {
                "": {
                    gate: (shown, [[mistakes(learning[gate, s], n) for s in seeds] for n in shown])
                    for gate in GATES
                }
            },
            title="Mistakes of a perceptron while it learns",
            x="epoch",
            y="mistakes on four examples",
        ),
        f"Mean ± sd of {cfg.seeds} orders of the examples. XOR has not come to rest after "
        f"{cfg.epochs} epochs.",
    )
    study.claim(
        "A perceptron learns AND, OR and NAND",
        verdict(all(learned(learning[gate, seed]) for gate, seed in product(PARTED, seeds))),
        "; ".join(
            f"{gate}: with {sum(learned(learning[gate, s]) for s in seeds)} of {cfg.seeds} orders, "
            f"after {study.metric(f'epochs/{gate}', [len(learning[gate, s]) for s in seeds]):.1f} "
            "epochs"
            for gate in PARTED
        ),
    )
    fewest = min(wrong(epoch, GATES["XOR"]) for s in seeds for epoch in learning["XOR", s])
    study.metric("XOR/fewest corners wrong", fewest)
    period = [came_back(learning["XOR", seed]) for seed in seeds]
    study.claim(
        "A perceptron never learns XOR",
        verdict(fewest > 0 and all(period)),
        f"no epoch ended with fewer than {fewest} of 4 corners wrong; weights and bias came back "
        f"to earlier values within {max(period)} epochs, so that all repeats for ever",
    )
    tables = [tuple(map(int, table)) for table in product((0, 1), repeat=len(CORNERS))]
    able = [t for t in tables if learned(teach(t, seed=0, epochs=cfg.epochs))]
    study.metric("functions learned", len(able))
    study.claim(
        "A single neuron is too little for some patterns",
        verdict(0 < len(able) < len(tables)),
        f"a perceptron learned {len(able)} of the {len(tables)} functions of two bits, all but "
        + " and ".join(name(t) for t in tables if t not in able),
    )


def teach(truth: Sequence[int], *, seed: int, epochs: int) -> list[Epoch]:
    """A perceptron's history on the four corners, which it sees in an order drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(CORNERS))
    return Perceptron(2).fit(CORNERS[order], np.array(truth)[order], epochs=epochs)


def moves(truth: Sequence[int], *, epochs: int) -> list[Epoch]:
    """The line after each mistake, the corners being shown one after the other."""
    neuron, lines = Perceptron(2), []
    for i in list(range(len(CORNERS))) * epochs:
        (line,) = neuron.fit(CORNERS[i : i + 1], np.array(truth[i : i + 1]), epochs=1)
        if line.mistakes:
            lines.append(line)
    return lines


def learned(history: Sequence[Epoch]) -> bool:
    """Whether it came to make no mistake."""
    return history[-1].mistakes == 0


def mistakes(history: Sequence[Epoch], epoch: int) -> int:
    """How many it made in an epoch, counted from 1: none after it has learned."""
    return history[epoch - 1].mistakes if epoch <= len(history) else 0


def wrong(epoch: Epoch, truth: Sequence[int]) -> int:
    """How many corners lie on the wrong side of an epoch's line."""
    return int((fires(epoch, CORNERS) != truth).sum())


def came_back(history: Sequence[Epoch]) -> int:
    """The first epoch that ended with weights and bias seen before; 0 where there is none."""
    states = [(*epoch.weights, epoch.bias) for epoch in history]
    return next((i for i, state in enumerate(states, start=1) if state in states[: i - 1]), 0)


def fires(epoch: Epoch, x: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the neuron fired for x [..., 2] as an epoch left it."""
    answer: NDArray[np.bool_] = x @ epoch.weights + epoch.bias > 0
    return answer


def name(truth: Sequence[int]) -> str:
    """What a function of two bits is called, or its four values."""
    named = {**GATES, "XNOR": (1, 0, 0, 1)}
    return next((gate for gate, table in named.items() if table == truth), str(truth))


def frames(lines: Mapping[str, Sequence[Epoch]], count: int) -> Figure:
    """For each gate a row of panels: its last lines, up to `count` of them."""
    side, gap, above = 1.25, 0.2, 0.4
    width, height = 0.65 + (side + gap) * count, 0.45 + (side + above) * len(lines)
    figure = sheet(width, height, title="The line that a perceptron moves at every mistake")
    for row, (gate, every) in enumerate(lines.items()):
        bottom = 0.1 + (side + above) * (len(lines) - 1 - row)
        for column, (number, line) in enumerate(list(enumerate(every, start=1))[-count:]):
            axes = panel(figure, (0.65 + (side + gap) * column, bottom, side, side))
            _frame(axes, line, GATES[gate])
            heading = f"mistake {number}: {wrong(line, GATES[gate])} wrong"
            axes.set_title(heading, fontsize=SMALL, color=INK, loc="left", pad=3)
        place = (0.12 / width, (bottom + side / 2) / height)
        figure.text(*place, gate, color=INK, fontsize=MEDIUM, fontweight="bold", va="center")
    return figure


def _frame(axes: Axes, line: Epoch, truth: Sequence[int]) -> None:
    at = np.linspace(-0.5, 1.5, 3)
    grid = np.stack(np.meshgrid(at, at), axis=-1)
    height = grid @ line.weights + line.bias
    axes.contourf(at, at, height, levels=[-1e9, 0, 1e9], colors=["white", SHADE])
    if height.min() < 0 < height.max():
        axes.contour(at, at, height, levels=[0], colors=INK, linewidths=1.4)
    for corner, should in zip(CORNERS, truth, strict=True):
        colour = BLUE if fires(line, corner) == should else VERMILION
        style: dict[str, Any] = {"markeredgecolor": colour, "markeredgewidth": 1.6}
        axes.plot(*corner, "o", color=colour if should else "white", markersize=8, **style)
    axes.set_xticks([0, 1], ["", ""])
    axes.set_yticks([0, 1], ["", ""])
    axes.grid(visible=False)


if __name__ == "__main__":
    execute(main)
