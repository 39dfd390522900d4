"""The perceptron learns what a line can part, within Novikoff's bound, and nothing else."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.svm import SVC

from perceptrail.scratch.perceptron import Perceptron

CORNERS = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
GATES = {
    "and": np.array([0, 0, 0, 1]),
    "or": np.array([0, 1, 1, 1]),
    "nand": np.array([1, 1, 1, 0]),
}
XOR = np.array([0, 1, 1, 0])


def most_mistakes(x, y):
    """Novikoff's (R/γ)²: of the inputs with a 1 for the bias, whose margin an SVM maximises."""
    extended = np.c_[x, np.ones(len(x))]
    flipped = np.where(y[:, None] == 1, extended, -extended)
    both = np.r_[flipped, -flipped]  # symmetric, so that the SVM's own bias is 0
    svm = SVC(kernel="linear", C=1e6).fit(both, np.repeat([1, 0], len(x)))
    margin = 1 / np.linalg.norm(svm.coef_)
    return (np.linalg.norm(extended, axis=1).max() / margin) ** 2


@pytest.mark.parametrize("gate", GATES)
def test_gates_are_learned_within_the_bound(gate):
    neuron = Perceptron(2)
    history = neuron.fit(CORNERS, GATES[gate], epochs=100)
    assert (neuron.predict(CORNERS) == GATES[gate]).all()
    assert [epoch.mistakes == 0 for epoch in history] == [False] * (len(history) - 1) + [True]
    assert sum(epoch.mistakes for epoch in history) <= most_mistakes(CORNERS, GATES[gate])


def test_points_with_a_margin_are_learned_within_the_bound():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    side = x @ [1.0, -2, 0.5, 1] - 0.3
    x, y = x[np.abs(side) > 0.3], (side[np.abs(side) > 0.3] > 0).astype(int)
    neuron = Perceptron(4)
    history = neuron.fit(x, y, epochs=1000)
    assert (neuron.predict(x) == y).all()
    assert 1 < sum(epoch.mistakes for epoch in history) <= most_mistakes(x, y)


def test_xor_is_never_learned_since_the_weights_run_in_a_circle():
    history = Perceptron(2).fit(CORNERS, XOR, epochs=100)
    assert len(history) == 100
    assert min(epoch.mistakes for epoch in history) > 0
    # What follows depends on the weights alone: once they come back, they come back forever.
    states = [(*epoch.weights, epoch.bias) for epoch in history]
    assert len(set(states)) < 10


def test_the_rule_by_hand():
    # (1, 2) is a 1 and said to be 0: w = ηx, b = η. (3, 1) is a 0 and said to be 1: minus ηx, η.
    neuron = Perceptron(2, rate=0.5)
    (epoch,) = neuron.fit(np.array([[1.0, 2], [3, 1]]), np.array([1, 0]), epochs=1)
    assert epoch.mistakes == 2
    assert_allclose(epoch.weights, [0.5 - 1.5, 1.0 - 0.5])
    assert epoch.bias == 0


def test_the_rate_scales_the_line_and_changes_no_answer():
    plain, scaled = Perceptron(2), Perceptron(2, rate=0.25)
    histories = [neuron.fit(CORNERS, GATES["and"], epochs=20) for neuron in (plain, scaled)]
    assert [epoch.mistakes for epoch in histories[0]] == [epoch.mistakes for epoch in histories[1]]
    assert_allclose(scaled.weights, 0.25 * plain.weights)


def test_the_history_keeps_lines_that_later_epochs_do_not_change():
    history = Perceptron(2).fit(CORNERS, GATES["and"], epochs=20)
    assert len({tuple(epoch.weights) for epoch in history}) > 2
