"""The data of this project."""

import numpy as np
from numpy.typing import NDArray


def rings(
    n: int, noise: float, *, classes: int = 3, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Points [n, 2] on rings about one centre, and the number of each point's ring [n]."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    angle = random.uniform(0, 2 * np.pi, n)
    radius = 1 + y + noise * random.standard_normal(n)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return x.astype(np.float32), y
