"""scikit-learn's classifiers on the split that a run trains and validates on."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from perceptrail.data.dataset import Dataset, Part
from perceptrail.data.module import DataModule

# Of a seed. All compute with as many threads as PyTorch: the forest is told so, the others follow
# OMP_NUM_THREADS as it does.
PEERS: Mapping[str, Callable[[int], Any]] = {
    "logistic regression": lambda seed: LogisticRegression(max_iter=1000, random_state=seed),
    "scikit-learn MLP": lambda seed: MLPClassifier(max_iter=500, random_state=seed),
    "random forest": lambda seed: RandomForestClassifier(
        n_jobs=torch.get_num_threads(), random_state=seed
    ),
    # Half the trees at twice the rate, and coarser bins: the defaults are slow on images
    "boosted trees": lambda seed: HistGradientBoostingClassifier(
        max_iter=50, learning_rate=0.2, max_bins=32, random_state=seed
    ),
}


@dataclass(frozen=True)
class Fitted:
    """How a peer did: accuracies, and the seconds that its training took."""

    train_accuracy: float
    accuracy: float
    fit_s: float


def same_split(
    dataset: Dataset, *, seed: int, val_size: float, train_size: int | None = None
) -> tuple[Part, Part]:
    """The training and the validation part that a run with these settings has.

    Raises `UserError` for a size that the data do not allow.
    """
    data = DataModule(dataset, batch_size=1, seed=seed, val_size=val_size, train_size=train_size)
    data.setup("fit")
    (x, y), (x_val, y_val) = data.train, data.val
    return (x.numpy(), y.numpy()), (x_val.numpy(), y_val.numpy())


def fit(peer: str, train: Part, val: Part, *, seed: int) -> Fitted:
    """Train one of the `PEERS` and judge it on both parts."""
    model = PEERS[peer](seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged where it has got to
        model.fit(*train)
    seconds = time.perf_counter() - start
    return Fitted(float(model.score(*train)), float(model.score(*val)), seconds)
