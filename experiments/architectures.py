"""Deep or wide: what shape should a network have?

A network can spend its parameters on one wide layer, on many narrow ones, or on anything between.
Here all shapes get the same budget, and layers as wide as it pays for. The patterns are spirals
that turn more and more often; the parity of several bits, which is XOR of XOR of XOR; and
handwritten digits. A second look gives up the budget and widens two hidden layers, from a single
unit to more units than there are inputs.

On images the first layer costs nearly everything, since each of its units has 784 weights; further
layers are cheap. With two inputs it is the other way round: a second layer takes most of the width.
"""

from perceptrail.studies import Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from itertools import count, pairwise, product
from statistics import mean
from typing import Any, NamedTuple

from perceptrail import charts

SHALLOW = 2  # hidden layers at most
CLOSE = 0.01  # of accuracy: as good as the best
PLAIN = ("model.dropout=0", "callbacks.early_stopping=null")

Values = dict[Any, list[float]]  # of every seed


class Task(NamedTuple):
    """What to learn, and how many parameters there are for it."""

    inputs: int
    outputs: int
    budget: int
    overrides: tuple[str, ...]

    def hidden(self, layers: int) -> list[int]:
        """So many hidden layers of one width, the largest that the budget pays for."""

        def parameters(width: int) -> int:
            widths = [self.inputs, *[width] * layers, self.outputs]
            return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))

        return [next(w for w in count(1) if parameters(w + 1) > self.budget)] * layers


def main(study: Study) -> None:
    """Compare depths at equal budgets, then widths."""
    cfg = study.cfg
    plane = (f"trainer.max_epochs={cfg.plane_epochs}", "optimizer.lr=0.01")
    digits = (f"trainer.max_epochs={cfg.epochs}", f"data.train_size={cfg.train_size}")
    spirals = {
        f"spirals: {turns:g} turns": Task(
            2, 1, cfg.plane_budget, ("data=spirals", f"data.turns={turns}", *plane)
        )
        for turns in cfg.turns
    }
    bits = (f"data.bits={cfg.bits}", "data.noise=0.3")
    parity = Task(cfg.bits, 1, cfg.plane_budget, ("data=xor", *bits, *plane))
    images = {
        f"MNIST: {budget // 1000}k": Task(784, 10, budget, ("data=mnist", *digits))
        for budget in cfg.image_budgets
    }
    plane_tasks = {**spirals, f"parity: {cfg.bits} bits": parity}
    budgets = " and ".join(f"{budget:,}" for budget in cfg.image_budgets)
    panels = {f"{cfg.plane_budget:,}": plane_tasks, budgets: images}
    depths(study, {f"{budget} parameters": tasks for budget, tasks in panels.items()})
    widths(study, {"spirals": list(spirals.values())[-1], "MNIST": list(images.values())[-1]})


def depths(study: Study, panels: dict[str, dict[str, Task]]) -> None:
    """Train every task at every depth with its budget."""
    layers = list(study.cfg.depths)
    tasks = {name: task for panel in panels.values() for name, task in panel.items()}
    variants = {
        (name, depth): [*task.overrides, f"model.hidden={task.hidden(depth)}"]
        for (name, task), depth in product(tasks.items(), layers)
    }
    accuracy = of(study.train("equal budgets", *PLAIN, variants=variants), "best/val/acc")
    for (name, depth), values in accuracy.items():
        study.metric(f"{name}/{depth} layers", values)
    shapes = "; ".join(
        f"{name}: " + ", ".join(f"{depth} × {tasks[name].hidden(depth)[0]}" for depth in layers)
        for name in (list(panel)[-1] for panel in panels.values())
    )
    study.figure(
        "depth",
        charts.lines(
            {
                heading: {name: (layers, [accuracy[name, d] for d in layers]) for name in panel}
                for heading, panel in panels.items()
            },
            title="Depth at an equal number of parameters",
            x="hidden layers",
            y="validation accuracy (%)",
            percent=True,
        ),
        f"Mean ± sd of {study.cfg.seeds} seeds. Hidden layers × units: {shapes}.",
    )

    top = {name: max(mean(accuracy[name, depth]) for depth in layers) for name in tasks}

    def behind(name: str, depths: list[int]) -> float:
        return top[name] - max(mean(accuracy[name, depth]) for depth in depths)

    shallow = [depth for depth in layers if depth <= SHALLOW]
    deep = [depth for depth in layers if depth > SHALLOW]
    simple, *hard = tasks
    study.claim(
        "Shallow networks, of 1-2 hidden layers, are for simple patterns",
        verdict(behind(simple, shallow) <= CLOSE),
        f"{simple}: the best of them is {100 * behind(simple, shallow):.1f} points behind the best",
    )
    gains = {name: behind(name, shallow) - behind(name, deep) for name in hard}
    study.claim(
        "Deep networks, of 3 or more hidden layers, are for complex patterns",
        verdict(min(gains.values()) > CLOSE, partly=max(gains.values()) > CLOSE),
        "gain of the best deep network over the best shallow one at equal parameters: "
        + ", ".join(f"{name} {100 * gain:+.1f} points" for name, gain in gains.items()),
    )
    nested = next(name for name in tasks if name.startswith("parity"))
    study.claim(
        "Deep and narrow networks are for hierarchical features",
        verdict(behind(nested, [layers[-1]]) <= CLOSE, partly=behind(nested, deep) <= CLOSE),
        f"{nested}, by hidden layers: "
        + ", ".join(f"{depth}: {percent(accuracy[nested, depth])}" for depth in layers),
    )
    two = {name: behind(name, [SHALLOW]) for name in tasks}
    good = sum(gap <= CLOSE for gap in two.values())
    study.claim(
        "Start with 2 hidden layers",
        verdict(good == len(two), partly=good >= len(two) / 2),
        f"as good as the best to within a point on {good} of {len(two)} tasks; at most "
        f"{100 * max(two.values()):.1f} points behind it",
    )


def widths(study: Study, tasks: dict[str, Task]) -> None:
    """Train two hidden layers of growing width, whatever they cost."""
    cfg = study.cfg
    variants = {
        (name, width): [*task.overrides, f"model.hidden={[width] * 2}"]
        for (name, task), width in product(tasks.items(), cfg.widths)
    }
    done = study.train("width", *PLAIN, variants=variants)
    accuracy, loss = of(done, "best/val/acc"), of(done, "train/loss")
    for (name, width), values in accuracy.items():
        study.metric(f"width/{name}/{width}", values)
    study.figure(
        "width",
        charts.lines(
            {
                "validation accuracy (%)": series(accuracy, tasks, cfg.widths, factor=100),
                "training loss (nats)": series(loss, tasks, cfg.widths),
            },
            title="Two hidden layers of growing width",
            x="units in each layer",
            y="",
            log_x=True,
        ),
        f"Mean ± sd of {cfg.seeds} seeds. MNIST has 784 inputs and 10 outputs, spirals 2 and 1.",
    )
    sizes = {name: [mean(loss[name, width]) for width in cfg.widths] for name in tasks}
    falls = {name: sum(b < a for a, b in pairwise(each)) for name, each in sizes.items()}
    steps = len(cfg.widths) - 1
    study.claim(
        "Wide layers, of many neurons, have more capacity",
        verdict(min(falls.values()) == steps, partly=min(falls.values()) >= steps / 2),
        "the loss on the training data fell with "
        + " and ".join(f"{n} of {steps} widenings on {name}" for name, n in falls.items()),
    )
    gap = {}
    for name, task in tasks.items():
        top = max(mean(accuracy[name, width]) for width in cfg.widths)
        between = [w for w in cfg.widths if task.outputs <= w <= task.inputs]
        gap[name] = top - max(mean(accuracy[name, width]) for width in between)
    study.claim(
        "The hidden size should be between those of input and output",
        verdict(max(gap.values()) <= CLOSE, partly=min(gap.values()) <= CLOSE),
        "behind the best width, the best of those: "
        + ", ".join(f"{100 * value:.1f} points on {name}" for name, value in gap.items()),
    )


def series(
    values: Values, tasks: dict[str, Task], widths: list[int], *, factor: float = 1
) -> dict[str, tuple[list[int], list[list[float]]]]:
    """A line for each task."""
    return {n: (widths, [[factor * v for v in values[n, w]] for w in widths]) for n in tasks}


if __name__ == "__main__":
    execute(main)
