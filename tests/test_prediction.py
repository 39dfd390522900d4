"""Losses, probabilities and counts against their formulas, and a stored model as a service."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, log_softmax, logsumexp, softmax
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch.nn import functional as F

from perceptrail.losses import example_losses, labels, mean_loss, probabilities
from perceptrail.model import MLP
from perceptrail.prediction import (
    CHUNK,
    Predictor,
    judge,
    logits_of,
)

SMOOTHING = [0.0, 0.1, 0.9]
every_smoothing = pytest.mark.parametrize("smoothing", SMOOTHING)


def sample(n, *, inputs=5, classes, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, inputs)).astype(np.float32)
    return x, rng.integers(classes, size=n)


def network(outputs, *, inputs=5, **options):
    torch.manual_seed(0)
    return MLP(inputs, outputs, hidden=[8], **options)


def logits(n, outputs, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=3, size=(n, outputs)))


@every_smoothing
@pytest.mark.parametrize("classes", [2, 10])
def test_softmax_losses_are_the_formula(smoothing, classes):
    z, (_, y) = logits(50, classes), sample(50, classes=classes)
    target = (1 - smoothing) * np.eye(classes)[y] + smoothing / classes
    expected = -(target * log_softmax(z.numpy(), axis=1)).sum(1)
    found = example_losses(z, torch.from_numpy(y), label_smoothing=smoothing)
    assert_allclose(found.numpy(), expected, rtol=1e-6)


@every_smoothing
def test_sigmoid_losses_are_the_formula(smoothing):
    z, (_, y) = logits(50, 1), sample(50, classes=2)
    target = y * (1 - smoothing) + smoothing / 2
    p = expit(z.numpy()[:, 0])
    expected = -target * np.log(p) - (1 - target) * np.log(1 - p)
    found = example_losses(z, torch.from_numpy(y), label_smoothing=smoothing)
    assert_allclose(found.numpy(), expected, rtol=1e-5)


@every_smoothing
@pytest.mark.parametrize("label", [0, 1])
def test_sigmoid_losses_are_exact_however_small(smoothing, label):
    z = torch.linspace(-85, 85, 100_001)[:, None]
    target, far = label * (1 - smoothing) + smoothing / 2, z[:, 0].double().numpy()
    expected = target * np.logaddexp(0, -far) + (1 - target) * np.logaddexp(0, far)
    found = example_losses(z, torch.full((len(z),), label), label_smoothing=smoothing)
    assert_allclose(found.numpy(), expected, rtol=5e-7)


@every_smoothing
def test_one_output_is_a_softmax_over_two_of_which_the_first_is_zero(smoothing):
    z, y = logits(50, 1), torch.from_numpy(sample(50, classes=2)[1])
    both = torch.cat([torch.zeros_like(z), z], 1)
    expected = F.cross_entropy(both, y, label_smoothing=smoothing, reduction="none")
    found = example_losses(z, y, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, check_dtype=False)
    torch.testing.assert_close(probabilities(z), both.softmax(1))
    assert torch.equal(labels(z), both.argmax(1))


@every_smoothing
@pytest.mark.parametrize("outputs", [1, 2, 10])
def test_the_mean_loss_is_the_mean(smoothing, outputs):
    z, (_, y) = logits(50, outputs), sample(50, classes=max(outputs, 2))
    true = torch.from_numpy(y)
    expected = example_losses(z, true, label_smoothing=smoothing).mean()
    torch.testing.assert_close(mean_loss(z, true, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_certain_and_wrong_costs_much_but_stays_finite(outputs):
    z = torch.full((1, outputs), -1000.0)
    z[0, 0] = 1000.0
    wrong = torch.tensor([0 if outputs == 1 else 1])
    for smoothing in SMOOTHING:
        assert example_losses(z, wrong, label_smoothing=smoothing).isfinite().all()
    assert float(example_losses(z, wrong)) == (1000 if outputs == 1 else 2000)
    assert probabilities(z).isfinite().all()


@pytest.mark.parametrize("outputs", [2, 10])
def test_probabilities_are_a_softmax(outputs):
    z = logits(50, outputs)
    assert_allclose(probabilities(z).numpy(), softmax(z.numpy(), axis=1), rtol=1e-10)
    assert_allclose(probabilities(z).numpy().sum(1), 1)


@pytest.mark.parametrize(("outputs", "classes"), [(1, 2), (3, 3), (10, 10)])
def test_a_judgement_is_what_scikit_learn_counts(outputs, classes):
    x, y = sample(300, classes=classes)
    y[y == classes - 1] = 0  # a class that is not there
    made = network(outputs, dropout=0.5, input_dropout=0.5)
    names = list(range(classes))
    judgement = judge(made, x, y)
    z = made.eval()(torch.from_numpy(x)).detach().double().numpy()
    z = np.concatenate([np.zeros_like(z), z], 1) if outputs == 1 else z
    assert (judgement.predicted == z.argmax(1)).all()
    assert_allclose(judgement.probability, softmax(z, axis=1), rtol=1e-4)
    assert (judgement.counts == confusion_matrix(y, z.argmax(1), labels=names)).all()
    assert judgement.accuracy == pytest.approx(accuracy_score(y, z.argmax(1)))
    expected = log_loss(y, softmax(z, axis=1), labels=names)
    assert judgement.loss == pytest.approx(expected, rel=1e-5)
    assert judgement.loss == pytest.approx(np.mean(logsumexp(z, 1) - z[range(300), y]), rel=1e-5)


@pytest.mark.parametrize("n", [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_many_inputs_are_predicted_in_chunks(n):
    x, _ = sample(n, classes=2)
    made = network(3, dropout=0.5, norm="batch")
    found = logits_of(made, x)
    assert found.shape == (n, 3)
    torch.testing.assert_close(found, made(torch.from_numpy(x)))


@pytest.mark.parametrize(("outputs", "classes"), [(1, ["no", "yes"]), (3, ["a", "b", "c"])])
@pytest.mark.parametrize("form", [np.asarray, pd.DataFrame, np.ndarray.tolist])
def test_a_predictor_says_what_the_network_says(tmp_path, outputs, classes, form):
    made = network(outputs, mean=0.2, std=1.5, norm="batch", dropout=0.5)
    x, _ = sample(40, classes=2)
    made(torch.from_numpy(x))  # moves the running statistics of the norm
    made.save(tmp_path, classes=classes)
    table = Predictor(tmp_path).predict(form(x.astype(np.float64)))
    z = made.eval()(torch.from_numpy(x))
    assert list(table.columns) == ["label", *classes]
    assert (table[classes].to_numpy(np.float32) == probabilities(z).detach().numpy()).all()
    assert list(table["label"]) == [classes[k] for k in labels(z)]


def test_a_predictor_takes_no_inputs_and_gives_no_rows(tmp_path):
    network(3).save(tmp_path, classes=["a", "b", "c"])
    table = Predictor(tmp_path).predict(np.empty((0, 5)))
    assert table.shape == (0, 4)
