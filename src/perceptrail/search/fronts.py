"""The Pareto front of a search with several objectives, and which of its points comes first.

The knee is the point nearest to the best of every objective at once, each scaled so that the front
reaches from 0, the best, to 1: compromise programming with the Euclidean distance (Yu 1973,
Management Science 19:936).
"""

from collections.abc import Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial


def knee_first(
    front: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> list[FrozenTrial]:
    """The front, its knee before all others; of equals the first."""
    if not front:
        return []
    signs = [-1 if d == StudyDirection.MAXIMIZE else 1 for d in directions]
    losses = np.array([t.values for t in front]) * signs
    spread = np.ptp(losses, axis=0)
    scaled = (losses - losses.min(axis=0)) / np.where(spread > 0, spread, 1)
    knee = int(np.linalg.norm(scaled, axis=1).argmin())
    return [front[knee], *front[:knee], *front[knee + 1 :]]
