"""What keeps a network from memorising a small training set?

A network of a quarter of a million weights can learn a few hundred digits by heart. It is then
perfect on those and sure of itself on others, where it is often wrong: its loss on new digits,
which fell at first, rises again. Dropout silences units at random, so that none can rely on
another; early stopping keeps the network as it was before the loss rose; penalties (L1, L2) and a
bound on the weights (max-norm) keep it from becoming too sure.

Each is measured alone, against the same training without any of them, by the gap between the losses
on validation and on training digits, both without dropout. Whether a smaller gap also means more
digits read correctly is another question, and gets its own figure. The penalties' strengths were
raised after a first look, at two seeds; it changed two verdicts.
"""

from perceptrail.studies import Run, Study, check, execute, percent, verdict

if __name__ == "__main__":
    check(__file__, __doc__)  # before the imports below, which take seconds

from collections.abc import Sequence

import torch

from perceptrail import charts, runs
from perceptrail.baselines import same_split
from perceptrail.charts import mean_sd
from perceptrail.model import MLP
from perceptrail.prediction import judge
from perceptrail.runs import BEST, LAST

NONE, EARLY = "none", "early stopping"
HALVED, LESS = 0.5, 0.1  # of the gap: what closes so much prevents overfitting, or helps
POINT = 0.01  # of accuracy: more is no regularization but harm
Values = dict[str, list[float]]


def main(study: Study) -> None:
    """Train with each method, draw what became of them; then some on more and on less data."""
    cfg = study.cfg
    no_dropout, rate = "model.dropout=0", max(cfg.rates)
    methods = {
        NONE: [no_dropout],
        **{f"dropout {r:g}": [f"model.dropout={r}"] for r in cfg.rates},
        **{f"{s} dropout": [f"dropout={s}", f"model.dropout={rate}"] for s in cfg.schedules},
        EARLY: [no_dropout, f"callbacks.early_stopping.patience={cfg.patience}"],
        "L1": [no_dropout, f"regularization.l1={cfg.l1}"],
        "L2": [no_dropout, f"regularization.l2={cfg.l2}"],
        "max-norm": [no_dropout, f"regularization.max_norm={cfg.max_norm}"],
    }
    common = (
        *("schedule=constant", f"optimizer.lr={cfg.lr}", "optimizer.weight_decay=0"),
        *(f"data={cfg.data}", f"data.val_size={cfg.val_size}", f"data.batch_size={cfg.batch_size}"),
        *(f"trainer.max_epochs={cfg.epochs}", f"callbacks.early_stopping.patience={cfg.epochs}"),
    )
    done = study.train("methods", *common, f"data.train_size={cfg.train_size}", variants=methods)
    gaps, accuracy = judged(study, done, cfg.train_size)
    shown = f"{cfg.train_size} digits, {cfg.epochs} epochs, {cfg.seeds} seeds"
    study.figure(
        "gap",
        charts.dots({"": gaps}, title=f"How much is memorised: {shown}", x="loss gap (nats)"),
        "Loss on validation digits less that on training digits, when the training ends; early "
        f"stopping ends it after {cfg.patience} epochs without improvement and keeps the best "
        f"weights. The schedules move the dropout rate between 0 and {rate:g}.",
    )
    study.figure(
        "accuracy",
        charts.dots(
            {"": accuracy},
            title=f"How much is understood: {shown}",
            x="validation accuracy (%)",
            percent=True,
        ),
        "The same networks by the share of validation digits that they read correctly.",
    )
    drawn = [NONE, f"dropout {rate:g}", "L2", "max-norm"]
    curves = {
        metric: {name: curve(done, name, f"{part}/loss") for name in drawn}
        for metric, part in (("training", "train"), ("validation", "val"))
    }
    study.figure(
        "curves",
        charts.lines(curves, title="Learning by heart", x="epoch", y="loss (nats)"),
        "Mean ± sd over the seeds. The training loss is the one that is minimised, dropout and "
        "penalties included.",
    )
    for name in methods:
        study.metric(f"gap/{name}", gaps[name])
        study.metric(f"val/acc/{name}", accuracy[name])
    stopped = [float(len(run.history)) for run in done if run.variant == EARLY]
    study.metric("epochs until early stopping", stopped)

    dropout = f"dropout {rate:g}"
    few = {name: methods[name] for name in (NONE, dropout, EARLY)}
    by_size = {cfg.train_size: gaps}
    for size in cfg.sizes:
        if size not in by_size:
            some = study.train(f"{size} digits", *common, f"data.train_size={size}", variants=few)
            by_size[size], _ = judged(study, some, size)
    series = {name: (list(cfg.sizes), [by_size[size][name] for size in cfg.sizes]) for name in few}
    study.figure(
        "sizes",
        charts.lines(
            {"": series},
            title="Overfitting by the number of digits",
            x="training digits",
            y="loss gap (nats)",
            log_x=True,
        ),
        f"The same gap by size of the training set, mean ± sd of {cfg.seeds} seeds.",
    )

    compared = (gaps, accuracy)
    claim(study, "Dropout prevents overfitting", dropout, *compared)
    claim(study, "Early stopping prevents overfitting", EARLY, *compared)
    for name in ("L1", "L2", "max-norm"):
        claim(study, f"{name} regularization prevents overfitting", name, *compared)
    best = max(methods, key=lambda name: mean(accuracy[name]))
    gain = mean(accuracy[best]) - mean(accuracy[NONE])
    study.claim(
        "Regularize: a network so trained does better on data that it has not seen",
        verdict(gain >= POINT, partly=best != NONE),
        f"the best, {best}, reads {percent(accuracy[best])} of the validation digits, the network "
        f"without any {percent(accuracy[NONE])}",
    )


def judged(study: Study, done: Sequence[Run], size: int) -> tuple[Values, Values]:
    """The loss gaps and the validation accuracies of finished runs on `size` digits, by variant."""
    _, data = done[0].load()
    splits = {
        run.seed: same_split(data, seed=run.seed, val_size=study.cfg.val_size, train_size=size)
        for run in done
    }
    gaps: Values = {}
    accuracy: Values = {}
    for run in done:
        network = network_of(run)
        train, val = (judge(network, *part) for part in splits[run.seed])
        losses = {"train": train.loss, "val": val.loss, "gap": val.loss - train.loss}
        measured = {f"kept/{name}": value for name, value in losses.items()}
        study.note(f"kept, {size} digits", variant=run.variant, seed=run.seed, **measured)
        gaps.setdefault(str(run.variant), []).append(val.loss - train.loss)
        accuracy.setdefault(str(run.variant), []).append(val.accuracy)
    return gaps, accuracy


def network_of(run: Run) -> MLP:
    """The network as its last epoch left it; early stopping keeps the best."""
    network, _ = MLP.load(run.folder / runs.MODEL)
    file = run.folder / (BEST if run.variant == EARLY else LAST)
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items()})
    return network


def curve(done: Sequence[Run], variant: str, metric: str) -> tuple[list[int], list[list[float]]]:
    """A metric by epoch: the epochs, and for each its value for every seed."""
    rows = zip(*(run.history for run in done if run.variant == variant), strict=True)
    values = [[row[metric] for row in epoch] for epoch in rows]
    return list(range(1, len(values) + 1)), values


def claim(study: Study, text: str, method: str, gaps: Values, accuracy: Values) -> None:
    """A method prevents overfitting if it closes half of the gap, and costs no accuracy."""
    closed = 1 - mean(gaps[method]) / mean(gaps[NONE])
    harmless = mean(accuracy[method]) > mean(accuracy[NONE]) - POINT
    study.claim(
        text,
        verdict(closed >= HALVED and harmless, partly=closed >= LESS and harmless),
        f"{method} closes {closed:.0%} of the gap between validation and training loss, "
        f"{mean(gaps[NONE]):.2f} nats; accuracy {percent(accuracy[method])} against "
        f"{percent(accuracy[NONE])} without",
    )


def mean(values: Sequence[float]) -> float:
    """The mean over the seeds."""
    return mean_sd(values)[0]


if __name__ == "__main__":
    execute(main)
