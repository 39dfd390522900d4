"""Drawn problems against their geometry."""

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from perceptrail.data import synthetic

DRAWS = {
    "xor": synthetic.xor,
    "parity": partial(synthetic.xor, bits=5),
    "circles": synthetic.circles,
    "moons": synthetic.moons,
    "spirals": synthetic.spirals,
    "three arms": partial(synthetic.spirals, arms=3),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_sample_follows_from_its_arguments_alone(draw):
    x, y = draw(301, noise=0.1, seed=3)
    np.random.default_rng(3).random(10)
    again, labels = draw(301, noise=0.1, seed=3)
    other, _ = draw(301, noise=0.1, seed=4)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(y, labels)
    assert not np.any(x == other)
    assert (x.dtype, y.dtype, len(x), len(y)) == (np.float32, np.int64, 301, 301)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_classes_are_balanced(draw):
    _, y = draw(1000, noise=0.1, seed=0)
    counts = np.bincount(y)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_noise_is_the_standard_deviation_of_what_is_added(draw):
    quiet, _ = draw(20_000, noise=0.0, seed=0)
    noisy, _ = draw(20_000, noise=0.25, seed=0)
    assert np.std(noisy - quiet) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_xor_is_the_parity_of_the_positive_inputs(bits):
    x, y = synthetic.xor(1000, bits=bits, noise=0.1, seed=1)
    assert x.shape == (1000, bits)
    np.testing.assert_array_equal(y, (-1) ** (bits + 1) * np.sign(x).prod(axis=1) > 0)


@pytest.mark.parametrize(("n", "bits"), [(1000, 2), (1000, 4), (1003, 3), (100, 8)])
def test_xor_s_corners_are_as_balanced_as_n_allows(n, bits):
    x, _ = synthetic.xor(n, bits=bits, noise=0.05, seed=2)
    counts = np.bincount((x > 0) @ (1 << np.arange(bits)), minlength=2**bits)
    assert counts.max() - counts.min() <= 1


def best_line(x, y):
    """The accuracy of the best of all lines in 720 directions, at every threshold."""
    best = 0.0
    for angle in np.linspace(0, np.pi, 720, endpoint=False):
        order = np.argsort(x @ [np.cos(angle), np.sin(angle)])
        ones_before = np.concatenate([[0], np.cumsum(y[order])])
        zeros_before = np.arange(len(y) + 1) - ones_before
        right = zeros_before + y.sum() - ones_before
        best = max(best, right.max() / len(y), 1 - right.min() / len(y))
    return best


@pytest.mark.parametrize("seed", range(10))
def test_no_line_gets_more_than_three_quarters_of_xor(seed):
    x, y = synthetic.xor(1000, noise=0.1, seed=seed)
    assert LogisticRegression(C=1e6).fit(x, y).score(x, y) <= 0.75
    assert best_line(x, y) == 0.75


def test_circles_have_their_radii():
    x, y = synthetic.circles(500, noise=0.0, factor=0.3, seed=0)
    np.testing.assert_allclose(np.hypot(*x.T), np.where(y, 0.3, 1), atol=1e-6)


def test_moons_lie_on_their_half_circles():
    x, y = synthetic.moons(500, noise=0.0, seed=0)
    centre = np.where(y[:, None], (1, 0.5), (0, 0))
    np.testing.assert_allclose(np.hypot(*(x - centre).T), 1, atol=1e-6)
    assert np.all(np.where(y, x[:, 1] <= 0.5, x[:, 1] >= 0))


@pytest.mark.parametrize("arms", [2, 3])
def test_a_spiral_arm_winds_with_its_radius(arms):
    x, y = synthetic.spirals(500, arms=arms, turns=2, noise=0.0, seed=0)
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    off = angle / (2 * np.pi) - 2 * radius - y / arms
    np.testing.assert_allclose(off - np.round(off), 0, atol=1e-4)
    assert radius.max() <= 1 + 1e-6
