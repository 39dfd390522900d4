"""What a task measures and minimises, against scikit-learn and PyTorch; what it refuses."""

import json

import numpy as np
import pytest
import torch
from houses import houses
from running import Command
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    explained_variance_score,
    f1_score,
    log_loss,
    matthews_corrcoef,
    mean_absolute_error,
    mean_absolute_percentage_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from perceptrail import diagrams, tasks
from perceptrail.extras import Extras
from perceptrail.losses import probabilities
from perceptrail.tasks import Classification, Multilabel, Regression

LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


def numbers(n, several, *, members=()):
    """Outputs, and targets far from 0 and of other sizes."""
    rng = np.random.default_rng(0)
    outputs = torch.from_numpy(rng.normal(size=(*members, n, several)).astype(np.float32))
    y = 1000 + rng.normal(size=(*members, n, several)) * np.array([5.0, 300.0, 1.0])[:several]
    return outputs, torch.from_numpy(y.astype(np.float32))


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_measured_of_numbers_is_as_scikit_learn_has_it(several, loss):
    outputs, y = numbers(200, several)
    task = Regression.of(list("abc")[:several], y, loss=loss)
    column = y[:, 0] if several == 1 else y
    halves = [task.sums(outputs[k], column[k]) for k in (slice(120), slice(120, None))]
    found = {name: float(value) for name, value in task.metrics(sum(halves), 200).items()}
    told, true = task.predicted(outputs).numpy(), y.double().numpy()
    assert told.mean(0) == pytest.approx(true.mean(0), rel=0.5)
    scaled = (true - true.mean(0)) / true.std(0)
    assert found == pytest.approx(
        {
            "loss": float(LOSSES[loss](outputs.double(), torch.from_numpy(scaled))),
            "r2": r2_score(true, told),
            "mae": mean_absolute_error(true, told),
            "rmse": root_mean_squared_error(true, told),
        },
        rel=1e-5,
    )


def test_numbers_that_are_all_the_same_have_an_r2_as_scikit_learn_has_it():
    y = torch.full((9,), 3.0)
    task = Regression.of(["a"], y)
    for outputs in (torch.zeros(9, 1), torch.ones(9, 1)):
        found = task.metrics(task.sums(outputs, y), 9)["r2"]
        assert float(found) == r2_score(y.numpy(), task.predicted(outputs)[:, 0].numpy())


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_slope_of_a_loss_is_what_autograd_finds(loss, several):
    outputs, y = numbers(50, several)
    task = Regression.of(list("abc")[:several], y, loss=loss)
    given = outputs.clone().requires_grad_()
    value = task.loss(given, y)
    value.backward()
    assert float(value.detach()) == pytest.approx(
        float(LOSSES[loss](outputs, (y - task.mean) / task.std)), rel=1e-5
    )
    found, slope = task.loss_and_slope(outputs, y, share=0.5)
    torch.testing.assert_close((found, slope), (value.detach() / 2, given.grad / 2))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stack_has_each_members_loss_slope_and_measures(loss):
    outputs, y = numbers(50, 2, members=(3,))
    y = y * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    each = [Regression.of(["a", "b"], own, loss=loss) for own in y]
    stack = Regression.stacked(each)
    stack.keep([0, 2])
    kept = [0, 2]
    losses, slopes = stack.losses_and_slopes(outputs[kept], y[kept])
    found = stack.metrics(stack.sums(outputs[kept], y[kept]), 50)
    for place, k in enumerate(kept):
        loss_of, slope = each[k].loss_and_slope(outputs[k], y[k])
        torch.testing.assert_close((losses[place], slopes[place]), (loss_of, slope))
        own = each[k].metrics(each[k].sums(outputs[k], y[k]), 50)
        torch.testing.assert_close({k: v[place] for k, v in found.items()}, own)


def test_a_task_comes_back_from_its_facts():
    outputs, y = numbers(50, 2)
    task = Regression.of(["a", "b"], y, loss="huber")
    facts = json.loads(json.dumps({"task": task.facts(), "classes": [], "targets": ["a", "b"]}))
    again = tasks.read(facts)
    assert again.names == ("a", "b")
    assert torch.equal(again.predicted(outputs), task.predicted(outputs))
    assert torch.equal(again.sums(outputs, y), task.sums(outputs, y))


WEIGHTS = ([3.0, 1.0, 0.5], None, [1.0, 2.0, 4.0], None)
LABELS = np.random.default_rng(1).integers(0, 2, (90, 3))
CLASSES = np.random.default_rng(2).integers(0, 4, 90)


def by_scikit_learn(probability, y):
    """What its functions find, by the names that `metrics` has for them."""
    told = probability.argmax(1)
    two = probability.shape[1] == 2
    average = {"average": "binary" if two else "macro"}
    area = probability[:, 1] if two else probability
    held = y if two else np.eye(probability.shape[1])[y]
    return {
        "f1": f1_score(y, told, **average),
        "precision": precision_score(y, told, **average),
        "recall": recall_score(y, told, **average),
        "auroc": roc_auc_score(y, area, **({} if two else {"multi_class": "ovr"})),
        "average_precision": average_precision_score(held, area),
        "balanced_accuracy": balanced_accuracy_score(y, told),
        "mcc": matthews_corrcoef(y, told),
        "kappa": cohen_kappa_score(y, told),
    }


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_classes_are_as_scikit_learn_has_them(classes):
    task = Classification([str(k) for k in range(classes)])
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    outputs, y = outputs[:, : 1 if classes == 2 else 4], CLASSES % classes
    expected = by_scikit_learn(probabilities(outputs).numpy(), y)
    extras = Extras([*expected, "acc"], task)
    for part in (slice(50), slice(50, None)):
        extras.update(task, outputs[part], torch.from_numpy(y)[part])
    found = {name: float(value) for name, value in extras.compute().items()}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy(classes):
    task = Classification([str(k) for k in range(classes)])
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    outputs, y = outputs[:, : 1 if classes == 2 else 4], CLASSES % classes
    extras = Extras(["ece"], task)
    extras.update(task, outputs, torch.from_numpy(y))
    probability = probabilities(outputs).numpy()
    sure, right = probability.max(1), probability.argmax(1) == y
    bins = np.ceil(sure * 15).astype(int)
    gaps = [
        (bins == k).mean() * abs(sure[bins == k].mean() - right[bins == k].mean())
        for k in np.unique(bins)
    ]
    assert float(extras.compute()["ece"]) == pytest.approx(sum(gaps), rel=1e-5)


def test_what_is_measured_of_labels_is_as_scikit_learn_has_it():
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32))
    y, task = torch.from_numpy(LABELS).float(), Multilabel("abc")
    found = task.metrics(task.sums(outputs, y), 90)
    told = task.predicted(outputs).numpy()
    area = roc_auc_score(LABELS, outputs.sigmoid().numpy())
    assert float(found["exact"]) == pytest.approx(accuracy_score(LABELS, told))
    assert float(found["acc"]) == pytest.approx((told == LABELS).mean())
    loss = np.mean(
        [log_loss(LABELS[:, k], outputs[:, k].sigmoid().double().numpy()) for k in range(3)]
    )
    assert float(found["loss"]) == pytest.approx(loss, rel=1e-5)
    extras = Extras(["f1", "auroc"], task)
    extras.update(task, outputs, y)
    expected = {"f1": f1_score(LABELS, told, average="macro"), "auroc": area}
    assert {k: float(v) for k, v in extras.compute().items()} == pytest.approx(expected)


@pytest.mark.parametrize("several", [1, 3])
def test_metrics_of_numbers_are_as_scipy_has_them(several):
    outputs, y = numbers(90, several)
    outputs = outputs + torch.sin(y)
    task = Regression.of(list("abc")[:several], y)
    extras = Extras(["pearson", "spearman", "mape", "explained_variance"], task)
    extras.update(task, outputs, y[:, 0] if several == 1 else y)
    told, true = task.predicted(outputs).numpy(), y.double().numpy()
    columns = list(zip(told.T, true.T, strict=True))
    assert {k: float(v) for k, v in extras.compute().items()} == pytest.approx(
        {
            "pearson": np.mean([pearsonr(*pair).statistic for pair in columns]),
            "spearman": np.mean([spearmanr(*pair).statistic for pair in columns]),
            "mape": mean_absolute_percentage_error(true, told),
            "explained_variance": explained_variance_score(true, told),
        },
        rel=1e-3,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_slopes_of_labels_and_of_weighted_classes_are_what_autograd_finds(smoothing):
    outputs = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32))
    y = torch.from_numpy(CLASSES % 3)
    weights = torch.tensor([3.0, 1.0, 0.5])
    for task, target, terms in (
        (Multilabel("abc"), torch.from_numpy(LABELS).float(), None),
        (Classification("abc", class_weights=[3.0, 1.0, 0.5]), y, weights[y]),
    ):
        given = outputs.clone().requires_grad_()
        if terms is None:
            soft = target * (1 - smoothing) + smoothing / 2
            expected = F.binary_cross_entropy_with_logits(given, soft)
        else:
            each = F.cross_entropy(given, y, reduction="none", label_smoothing=smoothing)
            expected = (terms * each).mean()
        expected.backward()
        loss, slope = task.loss_and_slope(outputs, target, label_smoothing=smoothing, share=0.5)
        torch.testing.assert_close((loss, slope), (expected.detach() / 2, given.grad / 2))
        torch.testing.assert_close(
            task.loss(outputs, target, label_smoothing=smoothing), expected.detach()
        )
    losses, slopes = Multilabel("abc").losses_and_slopes(
        torch.stack([outputs, outputs / 2]),
        torch.from_numpy(LABELS).float().expand(2, -1, -1),
        label_smoothing=torch.tensor([[smoothing], [0.3]]),
    )
    own, its = Multilabel("abc").loss_and_slope(
        outputs / 2, torch.from_numpy(LABELS).float(), label_smoothing=0.3
    )
    torch.testing.assert_close((losses[1], slopes[1]), (own, its))


@pytest.mark.parametrize("several", [1, 3])
def test_a_stack_has_each_members_class_weights(several):
    outputs, _ = numbers(50, several, members=(4,))
    names = "abc"[: max(several, 2)]
    y = torch.randint(len(names), (4, 50))
    each = [Classification(names, class_weights=w and w[: len(names)]) for w in WEIGHTS]
    stack = Classification.stacked(each)
    for left, kept in (([0, 1, 2, 3], [0, 1, 2, 3]), ([0, 2, 3], [0, 2, 3]), ([1], [2])):
        stack.keep(left)
        losses, slopes = stack.losses_and_slopes(outputs[kept], y[kept])
        found = stack.metrics(stack.sums(outputs[kept], y[kept]), 50)
        for place, k in enumerate(kept):
            expected = each[k].loss_and_slope(outputs[k], y[k])
            torch.testing.assert_close((losses[place], slopes[place]), expected)
            own = each[k].metrics(each[k].sums(outputs[k], y[k]), 50)
            torch.testing.assert_close({k: v[place] for k, v in found.items()}, own)


def test_balanced_weights_are_scikit_learns():
    y = np.array([0] * 70 + [1] * 20 + [2] * 10)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert Classification.balanced(torch.from_numpy(y), classes=3) == pytest.approx(expected)


def test_the_curve_is_scikit_learns():
    score = np.round(np.random.default_rng(0).normal(size=90), 1)  # some of which are equal
    true = LABELS[:, 0]
    x, y, _ = roc_curve(true, score, drop_intermediate=False)
    found = diagrams.curve(true, score)
    np.testing.assert_allclose(found, (x, y))
    assert diagrams.area(*found) == pytest.approx(roc_auc_score(true, score))


NUMBER = ("task=regression", "data.target=price")
BAD = {
    ("data.target=price",): "the targets of houses (price) are numbers, and must be",
    (
        "task=regression",
        "data.target=town",
    ): "data.target=town: must hold numbers",
    ("task=regression", "data.target=town", "data.kind=classes"): "are the classes A, B, and must",
    (*NUMBER, "monitor.metric=val/acc", "monitor.mode=max"): (
        "monitor.metric=val/acc: must be one of train/loss, val/loss, val/r2"
    ),
    (*NUMBER, "task.loss=mes"): "task.loss=mes: must be",
    (*NUMBER, "regularization.label_smoothing=0.1"): (
        "regularization.label_smoothing=0.1: must be 0"
    ),
    (*NUMBER, "task.loss={_target_: torch.nn.NoLoss}"): (
        "task.loss._target_=torch.nn.NoLoss: cannot be imported"
    ),
    (
        "task=regression",
        "data.target=price",
        "task.loss={_target_: torch.nn.MSELoss, reduction: none}",
    ): ("task.loss: must return the mean loss, a scalar tensor, not [2, 1]"),
    (
        "data.target=cheap",
        "metrics=[mape]",
    ): "mape does not go with task=classification",
    ("data.target=cheap", "metrics=[f2]"): ": must be a list of some of",
    ("data.target=cheap", "monitor.metric=val/f1", "monitor.mode=max"): "metrics=[f1] adds it",
    ("data.target=cheap", "metrics=[top5]"): "metrics: top5:",
    ("data.target=cheap", "task.class_weights=[1]"): "must hold a number for each of the 2 classes",
    ("data.target=cheap", "task.class_weights=even"): "task.class_weights=even: must be null",
    ("task=multilabel", "data.target=[cheap,rooms]"): "(cheap, rooms) must be 0 or 1",
    ("task=regresion", "data.target=price"): "did you mean 'regression'",
}


@pytest.mark.slow
def test_what_does_not_go_with_a_task_is_said_in_a_line(tmp_path):
    houses(tmp_path)
    started = {
        given: Command(
            "train.py", "data=table", "data.path=houses.csv", *given, "trainer=cpu", cwd=tmp_path
        )
        for given in BAD
    }
    for given, command in started.items():
        command.wait()
        assert command.code == 1, (given, command.output)
        assert BAD[given] in command.output
        assert "Traceback" not in command.output
        said = command.output.strip().splitlines()
        assert len([line for line in said if "are taken for classes" not in line]) <= 2, said
