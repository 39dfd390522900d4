"""Classification problems drawn from a seed: pure functions of their arguments.

Each returns x, float32 [n, d], and y, int64 [n]; the classes take turns from row to row. `noise` is
the standard deviation of the Gaussian added to every coordinate, `seed` whatever
`numpy.random.default_rng` takes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Seed = int | Sequence[int]
Sample = tuple[NDArray[np.float32], NDArray[np.int64]]


def xor(n: int, *, bits: int = 2, noise: float, seed: Seed) -> Sample:
    """Corners of the cube {-1, 1}^bits with the parity of their positive coordinates as class.

    Two bits make the classic XOR. Every 2^bits rows hold every corner once; with noise so small
    that the corners stay apart, no line then gets more than 3/4 of such rows right for two bits.
    """
    rng = np.random.default_rng(seed)
    code = np.arange(2**bits)
    corners = code[:, None] >> np.arange(bits) & 1
    parity = corners.sum(axis=1) % 2
    turns = np.stack([rng.permutation(code[parity == p]) for p in (0, 1)], axis=1).ravel()
    row = turns[np.arange(n) % len(turns)]
    return _sample(2 * corners[row] - 1, parity[row], noise, rng)


def circles(n: int, *, noise: float, factor: float = 0.5, seed: Seed) -> Sample:
    """Two circles round the origin, of radius 1 (class 0) and `factor` (class 1)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    angle = rng.uniform(0, 2 * np.pi, n)
    return _sample(np.where(y, factor, 1)[:, None] * _on_circle(angle), y, noise, rng)


def moons(n: int, *, noise: float, seed: Seed) -> Sample:
    """Two interleaved half circles: the upper one round (0, 0), the lower one round (1, 1/2)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    upper = _on_circle(rng.uniform(0, np.pi, n))
    return _sample(np.where(y[:, None], (1, 0.5) - upper, upper), y, noise, rng)


def spirals(n: int, *, arms: int = 2, turns: float = 1.5, noise: float, seed: Seed) -> Sample:
    """Spiral arms out from the origin to radius 1, one class each, `turns` revolutions long.

    After Lang & Witbrock 1988, "Learning to tell two spirals apart"; the points lie evenly along
    the radius.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % arms
    radius = rng.uniform(0, 1, n)
    angle = 2 * np.pi * (turns * radius + y / arms)
    return _sample(radius[:, None] * _on_circle(angle), y, noise, rng)


def _on_circle(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _sample(
    x: NDArray[np.floating] | NDArray[np.integer],
    y: NDArray[np.integer],
    noise: float,
    rng: np.random.Generator,
) -> Sample:
    return (x + noise * rng.standard_normal(x.shape)).astype(np.float32), y.astype(np.int64)
