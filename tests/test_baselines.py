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


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_learns_what_can_be_learned_and_nothing_else(peer):
    train, val = same_split(WINE, seed=0, val_size=0.3)
    done = fit(peer, train, val, seed=0)
    assert done.accuracy >= 0.85  # the largest class has 40%
    assert done.train_accuracy >= 0.99
    assert done.fit_s > 0
    shuffled = np.random.default_rng(0).permutation(train[1])
    assert fit(peer, (train[0], shuffled), val, seed=0).accuracy < 0.65


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_repeats_itself(peer):
    parts = same_split(WINE, seed=1, val_size=0.3)
    one, same = (fit(peer, *parts, seed=1) for _ in range(2))
    assert (one.train_accuracy, one.accuracy) == (same.train_accuracy, same.accuracy)


def test_an_unfinished_training_is_judged_without_a_warning(monkeypatch):
    monkeypatch.setitem(PEERS, "hasty", lambda seed: LogisticRegression(max_iter=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < fit("hasty", *same_split(WINE, seed=0, val_size=0.3), seed=0).accuracy < 1
