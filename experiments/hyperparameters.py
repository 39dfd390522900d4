"""What does each hyperparameter do?

A network has settings that training does not learn. Each is varied here alone, while all others
stay at the lab's default: two hidden layers of 256 and 128 ReLU units, dropout 0.2, AdamW with a
learning rate that rises to 0.002 and falls again, batches of 128. What is best for one setting
depends on the others, which is why there are searches; but what each of them does, and how much it
matters, shows already.

Few digits and few epochs keep 170 trainings affordable. More of both would move the best values
somewhat: slow learning rates and large batches would catch up.
"""

from perceptrail.studies import Run, Study, check, execute, of, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perceptrail import charts, runs
from perceptrail.baselines import same_split
from perceptrail.charts import mean_sd
from perceptrail.data.dataset import Part
from perceptrail.losses import mean_loss
from perceptrail.model import MLP
from perceptrail.prediction import judge

POINT = 0.01  # of accuracy: what differs by less is taken as equal
RELAPSE = 0.1  # nats of validation loss lost again: more is called unstable
AXES = {  # of the hyperparameters that are numbers: their name with the unit, logarithmic or not
    "learning rate": ("peak learning rate", True),
    "hidden layers": ("hidden layers", False),
    "neurons": ("units in each of two hidden layers", True),
    "batch size": ("examples in a batch", True),
    "dropout": ("dropout rate", False),
}


def main(study: Study) -> None:
    """Vary each hyperparameter alone, draw what became of it, and compare with what is said."""
    cfg = study.cfg
    common = (
        *(f"data={cfg.data}", f"data.train_size={cfg.train_size}", f"data.val_size={cfg.val_size}"),
        *("data.batch_size=128", f"trainer.max_epochs={cfg.epochs}"),
    )
    grid: Mapping[str, Mapping[float | str, Sequence[str]]] = {
        "learning rate": {lr: [f"optimizer.lr={lr}"] for lr in cfg.lr},
        "hidden layers": {n: [f"model.hidden={[cfg.layer_width] * n}"] for n in cfg.layers},
        "neurons": {n: [f"model.hidden={[n, n]}"] for n in cfg.neurons},
        "batch size": {n: [f"data.batch_size={n}"] for n in cfg.batch_size},
        "dropout": {rate: [f"model.dropout={rate}"] for rate in cfg.dropout},
        "activation": {name: [f"model.activation={name}"] for name in cfg.activation},
        "optimizer": {name: [f"optimizer={name}"] for name in cfg.optimizer},
    }
    done = {
        name: study.train(name, *common, variants=variants, may_diverge=True)
        for name, variants in grid.items()
    }
    _, data = done["dropout"][0].load()
    splits = {
        seed: same_split(data, seed=seed, val_size=cfg.val_size, train_size=cfg.train_size)[0]
        for seed in range(cfg.seeds)
    }
    shown = f"Mean ± sd of {cfg.seeds} seeds; {cfg.train_size:,} digits, {cfg.epochs} epochs."
    accuracy = {name: of(some, "best/val/acc") for name, some in done.items()}
    fitted = {name: on_training_data(study, name, done[name], splits) for name in AXES}
    for name, by in accuracy.items():
        for value, values in by.items():
            study.metric(f"val/acc/{name} {value}", values)
        title = f"{name.capitalize()}, all else alike"
        if name not in AXES:
            figure = charts.dots({"": by}, title=title, x="validation accuracy (%)", percent=True)
            study.figure(name, figure, f"{shown} Each dot is a seed.")
            continue
        x, log_x = AXES[name]
        series = {
            part: (list(some), list(some.values()))
            for part, some in (("training", fitted[name]), ("validation", by))
        }
        figure = charts.lines(
            {"": series}, title=title, x=x, y="accuracy (%)", log_x=log_x, percent=True
        )
        study.figure(name.replace(" ", "_"), figure, shown)

    learning_rate(study, done["learning rate"])
    layers(study, fitted["hidden layers"], accuracy["hidden layers"])
    neurons(study, fitted["neurons"])
    batch_size(study, done["batch size"], splits)
    dropout(study, accuracy["dropout"])
    activation(study, accuracy["activation"])


def on_training_data(
    study: Study, part: str, done: Sequence[Run], splits: Mapping[int, Part]
) -> dict[float, list[float]]:
    """Accuracies of finished runs on their own training digits, by variant."""
    accuracy: dict[float, list[float]] = {}
    for run in done:
        value = float("nan")
        if not run.error:
            value = judge(MLP.load(run.folder / runs.MODEL)[0], *splits[run.seed]).accuracy
        study.note(f"{part}, judged", variant=run.variant, seed=run.seed, **{"train/acc": value})
        accuracy.setdefault(run.variant, []).append(value)  # type: ignore[arg-type]
    return accuracy


def learning_rate(study: Study, done: Sequence[Run]) -> None:
    """Draw how the lowest, the best and the highest rate learn; compare with what is said."""
    accuracy = of(done, "best/val/acc")
    low, high = min(accuracy), max(accuracy)
    best = max(accuracy, key=lambda lr: mean(accuracy[lr]))
    histories = {
        lr: [run.history for run in done if run.variant == lr and not run.error]
        for lr in (low, best, high)
    }
    curves = {
        f"{lr:g}": (
            list(range(1, 1 + min(map(len, some)))),
            [[row["val/loss"] for row in epoch] for epoch in zip(*some, strict=False)],
        )
        for lr, some in histories.items()
        if some
    }
    study.figure(
        "learning_curves",
        charts.lines({"": curves}, title="Learning rates", x="epoch", y="validation loss (nats)"),
        "The lowest, the best and the highest learning rate; mean ± sd over the seeds.",
    )
    last, least = of(done, "val/loss"), of(done, "best/val/loss")
    relapse = {lr: mean(last[lr]) - mean(least[lr]) for lr in (best, high)}
    diverged = sum(bool(run.error) for run in done if run.variant == high)
    ended = of(done, "val/acc")
    study.claim(
        "A learning rate that is too high makes the training unstable",
        verdict(
            diverged > 0 or relapse[high] > RELAPSE > relapse[best],
            partly=relapse[high] > RELAPSE,
        ),
        f"with {high:g} the validation loss ends {relapse[high]:.2f} nats above where it had been, "
        f"at {percent(ended[high])} of the digits, {diverged} of {study.cfg.seeds} diverged; with "
        f"{best:g} {relapse[best]:.2f} nats, at {percent(ended[best])}",
    )
    falling = sum(rows[-1]["val/loss"] < rows[-2]["val/loss"] for rows in histories[low])
    behind = mean(accuracy[best]) - mean(accuracy[low])
    study.claim(
        "A learning rate that is too low makes it slow",
        verdict(behind > POINT and falling == study.cfg.seeds, partly=behind > POINT),
        f"{low:g} has reached {percent(accuracy[low])} after {study.cfg.epochs} epochs; the loss "
        f"was still falling with {falling} of {study.cfg.seeds} seeds",
    )


def layers(
    study: Study, train: Mapping[float, Sequence[float]], val: Mapping[float, Sequence[float]]
) -> None:
    """More layers should do better than few, and fit the training digits better than others."""
    few, most = min(val), max(val)
    best = max(val, key=lambda n: mean(val[n]))
    gap = {n: mean(train[n]) - mean(val[n]) for n in val}
    gain = mean(val[best]) - mean(val[few])
    study.claim(
        "More hidden layers learn more complex patterns, at more risk of overfitting",
        verdict(
            best == most and gain > POINT and gap[most] > gap[few] + POINT,
            partly=gain > POINT or gap[most] > gap[few] + POINT,
        ),
        ", ".join(f"{n}: {percent(val[n])} (gap {100 * gap[n]:.1f} points)" for n in val),
    )


def neurons(study: Study, train: Mapping[float, Sequence[float]]) -> None:
    """More units should fit more of the training digits."""
    means = [mean(train[n]) for n in sorted(train)]
    grows = all(wide > narrow - POINT / 2 for narrow, wide in pairwise(means))
    gain = means[-1] - means[0]
    study.claim(
        "More neurons in a layer have more capacity",
        verdict(grows and gain > POINT, partly=gain > POINT),
        "of the training digits they fit "
        + ", ".join(f"{percent(train[n])} with {n}" for n in sorted(train)),
    )


def batch_size(study: Study, done: Sequence[Run], splits: Mapping[int, Part]) -> None:
    """Measure the noise in the gradients of batches, and how often the loss rises with them."""
    small, *_, large = sizes = list(study.cfg.batch_size)
    noise: dict[int, list[float]] = {size: [] for size in sizes}
    for run in done:
        if run.variant == large:
            network = MLP.load(run.folder / runs.MODEL)[0]
            x, y = map(torch.from_numpy, splits[run.seed])
            rng = np.random.default_rng(run.seed)
            for size in sizes:
                draws = rng.integers(len(y), size=(study.cfg.batches, size))
                noise[size].append(gradient_noise(network, x, y, draws))
                study.note("gradient", variant=size, seed=run.seed, noise=noise[size][-1])
    law = [[mean(noise[small]) * (small / size) ** 0.5] for size in sizes]
    study.figure(
        "gradient_noise",
        charts.lines(
            {"": {"measured": (sizes, list(noise.values())), "1/√size": (sizes, law)}},
            title="The gradient of a batch is a guess",
            x="examples in a batch",
            y="deviation / length of the full gradient",
            log_x=True,
        ),
        f"How far the gradients of {study.cfg.batches} random batches are from that of all "
        "training digits, in a trained network.",
    )
    rises = {size: [rise(run.history) for run in done if run.variant == size] for size in sizes}
    accuracy = of(done, "best/val/acc")
    quieter = all(mean(noise[b]) < mean(noise[a]) for a, b in pairwise(sizes))
    steadier = mean(rises[large]) <= mean(rises[small])
    study.claim(
        "Smaller batches are noisier, larger ones more stable",
        verdict(quieter and steadier, partly=quieter),
        f"from {small} to {large} examples the gradient's noise falls from "
        f"{mean(noise[small]):.1f} to {mean(noise[large]):.1f} times its length; the validation "
        f"loss rises in {mean(rises[small]):.0%} and {mean(rises[large]):.0%} of the epochs; in "
        f"equal epochs they reach {percent(accuracy[small])} and {percent(accuracy[large])}",
    )


def gradient_noise(network: MLP, x: Tensor, y: Tensor, draws: NDArray[np.int64]) -> float:
    """Root mean square distance of the gradients of drawn batches from that of all the data.

    `draws` [batches, size] says which examples are in a batch; the unit is the latter's length.
    """

    def gradient(inputs: Tensor, labels: Tensor) -> Tensor:
        loss = mean_loss(network(inputs), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*network.parameters()])])

    whole = gradient(x, y)
    squares = [(gradient(x[i], y[i]) - whole).square().sum() for i in torch.from_numpy(draws)]
    return float(torch.stack(squares).mean().sqrt() / whole.norm())


def rise(history: Sequence[Mapping[str, float]]) -> float:
    """The share of epochs in which the validation loss rose."""
    steps = [b["val/loss"] > a["val/loss"] for a, b in pairwise(history)]
    return sum(steps) / max(len(steps), 1)


def activation(study: Study, accuracy: Mapping[str, Sequence[float]]) -> None:
    """ReLU should be as good as any."""
    behind = max(map(mean, accuracy.values())) - mean(accuracy["relu"])
    study.claim(
        "ReLU is the usual choice for hidden layers",
        verdict(behind <= POINT, partly=behind <= 2 * POINT),
        ", ".join(f"{name}: {percent(values)}" for name, values in accuracy.items()),
    )


def dropout(study: Study, accuracy: Mapping[float, Sequence[float]]) -> None:
    """Rates of 0.1 to 0.5 should be as good as any, and others worse."""
    best = max(mean(values) for values in accuracy.values())
    good = [rate for rate, values in accuracy.items() if mean(values) >= best - POINT]
    usual = [rate for rate in accuracy if 0.1 <= rate <= 0.5]
    study.claim(
        "Dropout rates of 0.1 to 0.5 are typical",
        verdict(good == usual, partly=bool(set(good) & set(usual))),
        f"within a point of the best: {', '.join(f'{rate:g}' for rate in good)}; "
        + ", ".join(f"{rate:g}: {percent(values)}" for rate, values in accuracy.items()),
    )


def mean(values: Sequence[float]) -> float:
    """The mean of those that are numbers."""
    return mean_sd(values)[0]


if __name__ == "__main__":
    execute(main)
