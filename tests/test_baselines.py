"""scikit-learn's peers: on a run's own split, and as good as they should be."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from perceptrail.baselines import PEERS, fit, same_split
from perceptrail.data import sets
from perceptrail.data.module import DataModule
from perceptrail.errors import UserError

WINE = sets.tabular(table="wine")


@pytest.mark.parametrize("train_size", [None, 50])
def test_the_split_is_that_of_a_run(train_size):
    sizes = {"val_size": 0.25, "train_size": train_size, "seed": 3}
    data = DataModule(WINE, batch_size=8, **sizes)
    data.setup("fit")
    x, y = WINE.train()
    for (part_x, part_y), rows in zip(same_split(WINE, **sizes), data.rows, strict=True):
        np.testing.assert_array_equal(part_x, x[rows])
        np.testing.assert_array_equal(part_y, y[rows])


def test_a_size_that_the_data_do_not_allow_is_named():
    with pytest.raises(UserError, match=r"data.train_size=1000: must be at most"):
        same_split(WINE, seed=0, val_size=0.25, train_size=1000)


every_peer = pytest.mark.parametrize(
    ("task", "peer"), [(task, peer) for task, peers in PEERS.items() for peer in peers]
)


@pytest.mark.parametrize("peer", PEERS["classification"])
def test_a_peer_learns_what_can_be_learned_and_nothing_else(peer):
    train, val = same_split(WINE, seed=0, val_size=0.3)
    done = fit(peer, train, val, seed=0)
    assert done.score >= 0.85  # the largest class has 40%
    assert done.train_score >= 0.99
    assert done.fit_s > 0
    shuffled = np.random.default_rng(0).permutation(train[1])
    assert fit(peer, (train[0], shuffled), val, seed=0).score < 0.65


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("peer", PEERS["regression"])
def test_a_peer_tells_numbers_of_any_size(peer, several):
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 3)).astype(np.float32)
    y = 5000 + 300 * x @ np.array([[1.0, 0.1], [2.0, 3.0], [0.5, -1.0]], np.float32)
    y = y if several else y[:, 0]
    train, val = (x[:200], y[:200]), (x[200:], y[200:])
    done = fit(peer, train, val, seed=0, task="regression")
    assert min(done.score, done.train_score) > 0.8
    shuffled = (train[0], random.permutation(train[1]))
    assert fit(peer, shuffled, val, seed=0, task="regression").score < 0.2


@pytest.mark.parametrize("peer", PEERS["multilabel"])
def test_a_peer_tells_labels_of_which_any_may_hold(peer):
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3)).astype(np.float32)
    y = (x @ np.array([[1.0, 0.1], [2.0, 3.0], [0.5, -1.0]], np.float32) > 0).astype(np.float32)
    train, val = (x[:300], y[:300]), (x[300:], y[300:])
    done = fit(peer, train, val, seed=0, task="multilabel")
    assert min(done.score, done.train_score) > 0.85
    shuffled = (train[0], random.permutation(train[1]))
    assert fit(peer, shuffled, val, seed=0, task="multilabel").score < 0.7


def test_the_score_of_labels_is_the_share_that_is_right():
    y = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.float32)
    x, always = y.copy(), np.array([[0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    done = fit("random forest", (x, y), (x, always), seed=0, task="multilabel")
    assert (done.train_score, done.score) == (1, 6 / 8)


def test_the_score_of_numbers_is_r2():
    train, val = same_split(sets.tabular(table="diabetes", kind="numbers"), seed=0, val_size=0.3)
    (xs, y), (x_val, y_val) = ((np.c_[x, np.ones(len(x))], y) for x, y in (train, val))
    told = x_val @ np.linalg.lstsq(xs, y)[0]
    r2 = 1 - ((y_val - told) ** 2).sum() / ((y_val - y_val.mean()) ** 2).sum()
    found = fit("linear regression", train, val, seed=0, task="regression")
    assert found.score == pytest.approx(r2, rel=1e-3)


@every_peer
def test_a_peer_repeats_itself(task, peer):
    table = WINE if task == "classification" else sets.tabular(table="diabetes", kind="numbers")
    parts = same_split(table, seed=1, val_size=0.3)
    if task == "multilabel":
        parts = tuple((x, (x[:, :2] > 0).astype(np.float32)) for x, _ in parts)
    one, same = (fit(peer, *parts, seed=1, task=task) for _ in range(2))
    assert (one.train_score, one.score) == (same.train_score, same.score)


def test_an_unfinished_training_is_judged_without_a_warning(monkeypatch):
    monkeypatch.setitem(
        PEERS["classification"], "hasty", lambda seed: LogisticRegression(max_iter=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < fit("hasty", *same_split(WINE, seed=0, val_size=0.3), seed=0).score < 1
