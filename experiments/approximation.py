"""Can a network learn any function?

A single hidden layer with enough units comes as near as one likes to any continuous function on an
interval: so says the theorem of universal approximation (Cybenko 1989, Hornik 1991). It says that
such weights exist; not that training finds them, nor what happens outside the interval. That they
exist shows when one layer's units are put all over the interval and only its output is computed, by
least squares.

Four functions of one variable are learned here from examples: a wave, a zigzag with corners, a
jump, which is not continuous, and a chirp that swings ever faster. The networks are those written
in NumPy; they minimise the squared error, and grow in width and depth. Their error is the root mean
square of what is left, as a share of the function's own standard deviation: 100% is what a constant
would get.
"""

from perceptrail.studies import Study, check, execute, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from itertools import product
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptrail import charts
from perceptrail.activations import ACTIVATIONS
from perceptrail.scratch.network import Network
from perceptrail.scratch.optimizers import Adam

FUNCTIONS: dict[str, charts.Function] = {
    "wave": lambda x: np.sin(2 * np.pi * x),
    "corners": lambda x: 2 * np.abs((3 * x + 0.5) % 2 - 1) - 1,
    "jump": np.sign,
    "chirp": lambda x: np.sin(2 * np.pi * (x + 1) ** 2),
}
INSIDE = np.linspace(-1, 1, 1001)
OUTSIDE = np.concatenate([np.linspace(-1.5, -1, 251), np.linspace(1, 1.5, 251)])
SPREAD = 3**-0.5  # standard deviation of examples drawn evenly from [-1, 1]
LEARNED = 0.05  # relative error
SOLVED = 0  # in place of a depth: one hidden layer, by least squares

Errors = dict[str, dict[tuple[int, int], list[float]]]  # of every seed: by function, by shape


def main(study: Study) -> None:
    """Fit every function with networks of every shape; draw and judge what came out."""
    cfg = study.cfg
    inside: Errors = {name: {} for name in cfg.functions}
    outside: Errors = {name: {} for name in cfg.functions}
    fits = {name: {"the function": FUNCTIONS[name]} for name in cfg.functions}
    widest, deepest = max(cfg.widths), max(cfg.depths)
    for name in cfg.functions:
        print(f"{study.name}: {name}", flush=True)
        for depth, width in product([SOLVED, *cfg.depths], cfg.widths):
            layers = "1 solved" if depth == SOLVED else f"{depth}"
            learned = [fit(name, width, depth, seed=seed, cfg=cfg) for seed in range(cfg.seeds)]
            inside[name][depth, width] = [error(f, name, INSIDE) for f in learned]
            outside[name][depth, width] = [error(f, name, OUTSIDE) for f in learned]
            for seed in range(cfg.seeds):
                found = {"error": inside[name][depth, width][seed]}
                found |= {"error outside": outside[name][depth, width][seed]}
                study.note(name, layers=layers, width=width, seed=seed, **found)
            study.metric(f"{name}/{layers} x {width}", inside[name][depth, width])
            if width == widest and depth in (1, deepest):
                fits[name][f"{depth} × {width}"] = learned[0]
    draw(study, inside, fits)

    def best(errors: Errors, name: str, depths: list[int]) -> float:
        return min(mean(errors[name][depth, width]) for depth, width in product(depths, cfg.widths))

    least = {name: best(inside, name, cfg.depths) for name in inside}
    study.claim(
        "By stacking layers, a network can learn any function",
        verdict(max(least.values()) < LEARNED, partly=min(least.values()) < LEARNED),
        f"least error of all shapes: {listed(least)}; outside [-1, 1], at best "
        f"{listed({name: best(outside, name, cfg.depths) for name in inside})}",
    )
    solved, trained = ({n: best(inside, n, [depth]) for n in inside} for depth in (SOLVED, 1))
    study.claim(
        "One hidden layer is a universal approximator",
        verdict(max(trained.values()) < LEARNED, partly=min(solved.values()) < LEARNED),
        f"least error {listed(solved)} where the weights are solved for; where they are trained "
        f"{listed(trained)}",
    )
    deep = {name: best(inside, name, [deepest]) for name in inside}
    study.claim(
        "More layers learn more complex patterns",
        verdict(
            all(deep[name] < trained[name] for name in inside),
            partly=any(deep[name] < trained[name] for name in inside),
        ),
        f"least error with one hidden layer {listed(trained)}; with {deepest} {listed(deep)}",
    )


def fit(name: str, width: int, depth: int, *, seed: int, cfg: Any) -> charts.Function:
    """A network for examples of a function in [-1, 1], as a function itself."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (cfg.examples, 1)) / SPREAD
    y = FUNCTIONS[name](SPREAD * x[:, 0])
    shape = [1, *[width] * max(depth, 1), 1]
    network = Network(shape, activation=cfg.activation, loss="squared_error", seed=seed)
    if depth == SOLVED:
        (w, b), (v, c) = network.layers
        w[...] = cfg.steepness
        b[...] = cfg.steepness * rng.uniform(-1, 1, width) / SPREAD
        a = np.column_stack([ACTIVATIONS[cfg.activation].f(x @ w + b), np.ones(len(x))])
        solution = np.linalg.lstsq(a, y, rcond=1e-6)[0]  # else near-equal units get huge weights
        v[:, 0], c[0] = solution[:-1], solution[-1]
    else:
        options = {"epochs": cfg.epochs, "batch_size": cfg.batch_size, "seed": seed}
        for rate in cfg.rates:
            network.fit(x, y, optimizer=Adam(rate), **options)
    return lambda x: network.predict(x[:, None] / SPREAD)[:, 0]


def error(f: charts.Function, name: str, x: NDArray[np.float64]) -> float:
    """The root mean square of what a fit is off, relative to the function's deviation inside."""
    target = FUNCTIONS[name]
    return float(np.sqrt(np.mean((f(x) - target(x)) ** 2)) / target(INSIDE).std())


def draw(study: Study, errors: Errors, fits: dict[str, dict[str, charts.Function]]) -> None:
    """The errors against the width, and the functions beside their fits."""
    cfg = study.cfg
    layers = {d: f"{d} hidden layer{'s' if d > 1 else ''}" for d in cfg.depths}
    layers[SOLVED] = "1 hidden layer, solved"
    study.figure(
        "error",
        charts.lines(
            {
                name: {
                    label: (cfg.widths, [errors[name][depth, w] for w in cfg.widths])
                    for depth, label in layers.items()
                }
                for name in errors
            },
            title="Error of the fit against width and depth",
            x="units in each layer",
            y="relative error (%)",
            log_x=True,
            percent=True,
        ),
        f"Mean ± sd of {cfg.seeds} seeds, on points between the {cfg.examples} examples.",
    )
    study.figure(
        "fits",
        charts.functions(fits, title="Functions and what was learned", between=(-1.3, 1.3)),
        "Layers × units, of seed 0. The examples lie in [-1, 1]; what comes beyond is made up.",
    )


def listed(values: dict[str, float]) -> str:
    """Numbers with their names."""
    return ", ".join(f"{name} {value:.1%}" for name, value in values.items())


if __name__ == "__main__":
    execute(main)
