"""When is a neural network the wrong tool?

A multi-layer perceptron beside four classifiers of scikit-learn, on the same training and the same
validation examples: logistic regression, which is a single layer; scikit-learn's own multi-layer
perceptron; a random forest and gradient-boosted trees. Three kinds of data are asked: the small
tables that scikit-learn ships, with up to 569 rows; points whose classes are wound into spirals;
and handwritten digits, from a hundred upwards. Of one table, the progress of diabetes, the number
itself is asked for, too, by their likes for numbers, with linear regression as the single layer.
Nothing is tuned: the network is the lab's default, trained for as many epochs as it takes to learn
the training examples; the others are scikit-learn's defaults, the boosted trees with half as many
trees at twice the rate. That number of epochs was raised from 40 to 100 after a first look, when
the network had not learnt its examples yet; it changed two verdicts.

Networks for text and for sequences, and convolutions for images, are beyond this lab; so are data
sets so large that nothing else would do.
"""

from perceptrail.studies import Study, check, execute, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from perceptrail import charts
from perceptrail.baselines import PEERS, Fitted, fit, same_split
from perceptrail.charts import mean_sd
from perceptrail.measures import KINDS
from perceptrail.prediction import judge

CLASSES, NUMBERS = "classification", "regression"
OURS, LINEAR, TREES = "MLP", "logistic regression", ("random forest", "boosted trees")
OTHERS = (LINEAR, *TREES)  # all that are no networks
POINT = 0.01  # of accuracy or R²: what differs by less is taken as equal
Values = defaultdict[str, list[float]]


class Comparison:
    """All methods on one problem: scores and seconds, of each method a value for every seed.

    A score is an accuracy, or of numbers R².

    `ours` and `linear` are how many numbers the network and logistic regression learn.
    """

    ours, linear = 0, 0

    def __init__(self) -> None:
        self.train, self.val, self.seconds = Values(list), Values(list), Values(list)

    def best(self, methods: Iterable[str]) -> str:
        """Which of the methods is best on new examples."""
        return max(methods, key=lambda method: mean_sd(self.val[method])[0])

    def lead(self, others: Iterable[str]) -> float:
        """By how much the network is better than the best of others."""
        return mean_sd(self.val[OURS])[0] - mean_sd(self.val[self.best(others)])[0]

    def gap(self, method: str) -> float:
        """By how much a method is better on its training examples than on new ones."""
        return mean_sd(self.train[method])[0] - mean_sd(self.val[method])[0]


def main(study: Study) -> None:
    """Compare on tables, spirals and digits, then on more and more images."""
    cfg = study.cfg
    few = {"seeds": cfg.seeds, "epochs": cfg.epochs, "val_size": cfg.val_size}
    tables = {
        table: compare(study, table, "data=tabular", f"data.table={table}", **few)
        for table in cfg.tables
    }
    spirals, digits = (
        compare(study, name, f"data={name}", **few) for name in ("spirals", "digits")
    )
    problems = {**tables, "spirals": spirals, "digits 8x8": digits}
    numbers = compare(study, "numbers", "data=tabular", "data.table=diabetes", task=NUMBERS, **few)
    study.figure(
        "problems",
        charts.dots(
            {name: some.val for name, some in problems.items()},
            title=f"Few examples: five methods on the same ones, {cfg.seeds} seeds",
            x="validation accuracy (%)",
            percent=True,
        ),
        "Each dot is another split of the data into training and validation examples.",
    )
    many = {"seeds": cfg.image_seeds, "epochs": cfg.image_epochs, "val_size": cfg.image_val_size}
    images = {
        size: compare(study, f"mnist {size}", "data=mnist", **many, train_size=size)
        for size in cfg.image_sizes
    }
    for name, some in (problems | {f"mnist {size}": some for size, some in images.items()}).items():
        for method in some.val:
            study.metric(f"val/acc/{name}/{method}", some.val[method])
            study.metric(f"fit_s/{name}/{method}", some.seconds[method])
    draw(study, images)

    for method in numbers.val:
        study.metric(f"val/r2/diabetes/{method}", numbers.val[method])

    better = [name for name, some in tables.items() if some.lead(TREES) < -POINT]
    study.claim(
        "On tables of fewer than 10,000 rows tree models are often better",
        verdict(2 * len(better) >= len(tables), partly=bool(better)),
        f"by more than a point on {len(better)} of {len(tables)}: "
        + ", ".join(f"{name} {against(some, TREES)}" for name, some in tables.items())
        + f"; of the numbers of diabetes, R² is {against(numbers, TREES, told=r2)}",
    )
    plain = [name for name, some in tables.items() if some.lead([LINEAR]) <= POINT]
    study.claim(
        "When it matters to understand a model, take another than a neural network",
        verdict(len(plain) == len(tables), partly=2 * len(plain) >= len(tables)),
        f"logistic regression, a number for each column and class, is within a point or better on "
        f"{len(plain)} of {len(tables)} tables, with "
        + ", ".join(f"{some.linear:,} numbers for {some.ours:,}" for some in tables.values()),
    )
    study.claim(
        "Neural networks are good for complex non-linear patterns",
        verdict(
            spirals.lead([LINEAR]) > POINT and spirals.lead(TREES) >= -POINT,
            partly=spirals.lead([LINEAR]) > POINT,
        ),
        f"spirals: {against(spirals, [LINEAR])}, {against(spirals, TREES)}",
    )
    least, most = images[min(images)], images[max(images)]
    study.claim(
        "Neural networks are good for images",
        verdict(most.lead(OTHERS) > POINT, partly=most.lead(OTHERS) >= -POINT),
        f"{max(images):,} digits of MNIST: {against(most, OTHERS)}",
    )
    overfits = least.gap(OURS) > most.gap(OURS) + POINT
    study.claim(
        "A neural network overfits small data sets easily",
        verdict(overfits and least.lead(OTHERS) < -POINT, partly=overfits),
        f"it reads {100 * least.gap(OURS):.0f} points more of its {min(images):,} training digits "
        f"than of others, {100 * most.gap(OURS):.0f} points with {max(images):,}; with "
        f"{min(images):,} {against(least, OTHERS)}",
    )
    gains = most.lead(OTHERS) - least.lead(OTHERS)
    study.claim(
        "Neural networks are good for very large data sets",
        verdict(False, partly=gains > 0 and most.lead(OTHERS) > 0),
        f"from {min(images):,} to {max(images):,} digits, not yet very many, the lead over the "
        f"best other goes from {100 * least.lead(OTHERS):+.1f} to "
        f"{100 * most.lead(OTHERS):+.1f} points",
    )


def compare(
    study: Study,
    part: str,
    *overrides: str,
    seeds: int,
    epochs: int,
    val_size: float,
    train_size: int | None = None,
    task: str = CLASSES,
) -> Comparison:
    """Train the network and its peers on one problem, with each of so many seeds.

    The network is taken as it is when its training loss is lowest, for the validation examples are
    to be as new to it as to the others.
    """
    sizes = [f"data.val_size={val_size}"] + [f"data.train_size={train_size}"] * bool(train_size)
    to_the_end = ["monitor.metric=train/loss", f"callbacks.early_stopping.patience={epochs}"]
    common = [*overrides, *sizes, *to_the_end, "data.batch_size=32", f"trainer.max_epochs={epochs}"]
    common += [f"task={task}"]
    known_by = KINDS[task].measures[0]
    compared = Comparison()
    for run in study.train(part, *common, variants={OURS: []}, seeds=range(seeds)):
        network, data = run.load()
        compared.ours = network.parameter_count
        compared.linear = network.architecture["outputs"] * (network.architecture["inputs"] + 1)
        split = same_split(data, seed=run.seed, val_size=val_size, train_size=train_size)
        judged = (judge(network, *examples, task=run.task) for examples in split)
        train, val = (judgement.metrics[known_by] for judgement in judged)
        results = {OURS: Fitted(train, val, run["time/fit_s"])}
        results |= {peer: fit(peer, *split, seed=run.seed, task=task) for peer in PEERS[task]}
        for method, fitted in results.items():
            measured = {
                f"kept/train/{known_by}": fitted.train_score,
                f"kept/val/{known_by}": fitted.score,
            }
            study.note(f"{part}, compared", variant=method, seed=run.seed, **measured)
            compared.train[method].append(fitted.train_score)
            compared.val[method].append(fitted.score)
            compared.seconds[method].append(fitted.fit_s)
    return compared


def draw(study: Study, images: Mapping[int, Comparison]) -> None:
    """Accuracy and time against the size of the training set."""
    methods, sizes = images[max(images)].val, list(images)
    accuracy = {m: (sizes, [some.val[m] for some in images.values()]) for m in methods}
    seconds = {m: (sizes, [some.seconds[m] for some in images.values()]) for m in methods}
    shown = (
        f"MNIST, mean ± sd of {study.cfg.image_seeds} seeds; threads: {torch.get_num_threads()}."
    )
    study.figure(
        "images",
        charts.lines(
            {"": accuracy},
            title="Accuracy by the number of images",
            x="training digits",
            y="validation accuracy (%)",
            log_x=True,
            percent=True,
        ),
        shown,
    )
    study.figure(
        "images_time",
        charts.lines(
            {"": seconds},
            title="What the training costs",
            x="training digits",
            y="training time (s)",
            log_x=True,
        ),
        shown,
    )


def against(
    some: Comparison, others: Sequence[str], *, told: Callable[[Sequence[float]], str] = percent
) -> str:
    """The network's score and that of the best of others, in words."""
    best = some.best(others)
    return f"{told(some.val[OURS])} against {told(some.val[best])} of the {best}"


def r2(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    mean, sd = mean_sd(values)
    return f"{mean:.2f} ± {sd:.2f}"


if __name__ == "__main__":
    execute(main)
